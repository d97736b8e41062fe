"""Helpers for tests of gradients by λ and t: a float64 problem, and central differences."""

from __future__ import annotations

import numpy as np

from megatron_longrope.model import LongRopeModel, score_with_gradient
from megatron_longrope.rope import FactorOrigin, RopeFactors
from tests.support.tiny_models import WINDOW, random_documents

DOCUMENTS = random_documents(64, 37, 130, 2, 9)
WEIGHTS = [np.linspace(0.5, 1.5, len(document) - 1) / 200 for document in DOCUMENTS]
_STEP = 2e-6


def factors(start_tokens: int = 0) -> RopeFactors:
    """Returns factors whose λ rise from 1 to 3.8, for four times the window."""
    rescale = tuple(1.0 + 0.4 * i for i in range(8))
    return RopeFactors(
        rescale=rescale,
        start_tokens=start_tokens,
        attention_factor=1.15,
        original_length=WINDOW,
        target_length=4 * WINDOW,
        base=10000.0,
        head_dim=16,
        origin=FactorOrigin(method="test"),
    )


def loss_of(model: LongRopeModel, chosen: RopeFactors) -> float:
    """Returns Σ weights · nats over all tokens of all documents, under the factors `chosen`."""
    model.set_factors(chosen)
    nats, _ = score_with_gradient(model, DOCUMENTS, WEIGHTS, max_batch_tokens=140)
    return float(sum((n.astype(np.float64) * w).sum() for n, w in zip(nats, WEIGHTS, strict=True)))


def gradient_of(model: LongRopeModel, chosen: RopeFactors) -> np.ndarray:
    """Returns the derivatives of `loss_of` by every λ and then by t, by backpropagation."""
    model.set_factors(chosen)
    _, gradient = score_with_gradient(model, DOCUMENTS, WEIGHTS, max_batch_tokens=140)
    return np.append(gradient.rescale, gradient.attention_factor)


def central_differences(model: LongRopeModel, chosen: RopeFactors) -> np.ndarray:
    """Returns the derivatives of `loss_of` by every λ and then by t, from losses alone."""
    slopes = []
    for i in range(len(chosen.rescale) + 1):
        above, below = (loss_of(model, _moved(chosen, i, sign * _STEP)) for sign in (1, -1))
        slopes.append((above - below) / (2 * _STEP))
    return np.array(slopes)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns ‖found − expected‖ / ‖expected‖."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _moved(chosen: RopeFactors, i: int, by: float) -> RopeFactors:
    if i == len(chosen.rescale):
        return chosen.model_copy(update={"attention_factor": chosen.attention_factor + by})
    rescale = [value + by * (j == i) for j, value in enumerate(chosen.rescale)]
    return chosen.model_copy(update={"rescale": tuple(rescale)})
