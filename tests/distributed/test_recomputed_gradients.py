"""Recomputation changes no gradient, whatever part of a model is frozen, under every layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from megatron_longrope.model import score_with_gradient
from megatron_longrope.runtime import ParallelLayout, Runtime
from megatron_longrope.runtime.runtime import divide_processes
from megatron_longrope.training.config import Trainable
from tests.distributed.test_layout_matrix import documents, train_step
from tests.support.one_world import joined_processes
from tests.support.spawn import run_distributed
from tests.support.tiny_models import HfWeights, our_model, tiny_hf_model

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

BAR = 1e-6
ALONE = {"one": ParallelLayout()}
TWO = {
    "TP2": ParallelLayout(tensor_parallel=2),
    "TP2-SP": ParallelLayout(tensor_parallel=2, sequence_parallel=True),
    "PP2": ParallelLayout(pipeline_parallel=2),
    "CP2": ParallelLayout(context_parallel=2),
    "PP2-VPP2": ParallelLayout(pipeline_parallel=2, virtual_pipeline=2),
}
RECOMPUTED: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full"},
    "offload": {"recompute": "full", "offload": True},
}
TRAINABLE: tuple[Trainable, ...] = ("all", "attention")


class Seen(NamedTuple):
    """What one rank computed in one way."""

    loss: float
    gradients: dict[str, np.ndarray]


def seen_by_layout(
    layouts: dict[str, ParallelLayout], weights: HfWeights
) -> dict[tuple[str, bool, str], dict[str, Seen]]:
    """Runs on every rank. Returns, by layout, packing and what has gradients, what was seen under
    each kind of recomputation."""
    seen: dict[tuple[str, bool, str], dict[str, Seen]] = {}
    with joined_processes() as store:
        for name, layout in layouts.items():
            with divide_processes(layout, torch.device("cpu"), store) as runtime:
                for packed in (True, False):
                    for kind, build in RECOMPUTED.items():
                        for trainable in TRAINABLE:
                            found = of_weights(runtime, weights, packed, trainable, build)
                            seen.setdefault((name, packed, trainable), {})[kind] = found
                        found = of_factors(runtime, weights, packed, build)
                        seen.setdefault((name, packed, "factors"), {})[kind] = found
    return seen


def of_weights(
    runtime: Runtime, weights: HfWeights, packed: bool, trainable: Trainable, build: dict[str, Any]
) -> Seen:
    step = train_step(our_model(weights, runtime, **build), packed, trainable)
    return Seen(step.loss, {name: each.numpy() for name, each in step.gradients.items()})


def of_factors(runtime: Runtime, weights: HfWeights, packed: bool, build: dict[str, Any]) -> Seen:
    """λ and t are two gradients: one of them may vanish where the other does not. In float64: ∂/∂λ
    adds up hundreds of terms of either sign, and float32 rounds that to 1e-6."""
    model = our_model(weights, runtime, angle_precision="float64", dtype=torch.float64, **build)
    texts = [text for row in documents(packed) for text in row if len(text) > 1]
    by_token = [np.linspace(0.5, 1.5, len(text) - 1) for text in texts]
    nats, gradient = score_with_gradient(
        model, texts, by_token, max_batch_tokens=200 if packed else 1
    )
    loss = sum(float((a * b).sum()) for a, b in zip(nats, by_token, strict=True))
    by_t = np.array([gradient.attention_factor])
    return Seen(loss, {"rescale": gradient.rescale, "attention_factor": by_t})


def largest_error(found: Seen, expected: Seen) -> tuple[float, str]:
    """Returns the largest difference of a gradient, relative to the norm of the expected one, and
    whose it is."""
    assert found.gradients.keys() == expected.gradients.keys()
    errors = {
        name: float(np.linalg.norm(gradient - expected.gradients[name]))
        / float(np.linalg.norm(expected.gradients[name]))
        for name, gradient in found.gradients.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


@pytest.mark.parametrize(("world_size", "layouts"), [(1, ALONE), (2, TWO)], ids=["1", "2"])
def test_recomputation_changes_no_gradient(
    world_size: int, layouts: dict[str, ParallelLayout]
) -> None:
    yarn = {
        "rope_theta": 10000.0,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    hf = tiny_hf_model(num_hidden_layers=4, rope_parameters=yarn, max_position_embeddings=256)
    ranks = run_distributed(world_size, seen_by_layout, layouts, HfWeights.of(hf), timeout=360)
    failures: list[Sequence[object]] = []
    for rank, seen in enumerate(ranks):
        assert len(seen) == len(layouts) * 2 * 3
        for case, by_kind in seen.items():
            expected = by_kind["none"]
            assert all(np.linalg.norm(each) > 0 for each in expected.gradients.values()), case
            for kind in set(RECOMPUTED) - {"none"}:
                error, worst = largest_error(by_kind[kind], expected)
                if not error < BAR or by_kind[kind].loss != expected.loss:
                    failures.append((rank, *case, kind, error, worst))
    assert not failures, "\n".join(map(str, failures))
