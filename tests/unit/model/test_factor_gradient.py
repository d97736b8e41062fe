"""Gradients by λ and t against finite differences of the float64 model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel, score_documents, score_with_gradient
from megatron_longrope.runtime import Runtime
from tests.support.factor_gradients import (
    DOCUMENTS,
    WEIGHTS,
    central_differences,
    factors,
    gradient_of,
    relative_error,
)
from tests.support.tiny_models import our_model, single_runtime, tiny_hf_model

runtime = pytest.fixture(single_runtime, scope="module")


@pytest.fixture(scope="module")
def model(runtime: Runtime) -> LongRopeModel:
    return our_model(tiny_hf_model(), runtime, angle_precision="float64", dtype=torch.float64)


@pytest.mark.parametrize("start_tokens", [0, 12])
def test_gradient_equals_central_differences(start_tokens: int, model: LongRopeModel) -> None:
    chosen = factors(start_tokens)
    expected = central_differences(model, chosen)
    assert np.all(np.abs(expected[1:]) > 0)
    assert relative_error(gradient_of(model, chosen), expected) < 1e-6


def test_nats_are_those_of_scoring_and_weights_keep_no_gradient(runtime: Runtime) -> None:
    model = our_model(tiny_hf_model(), runtime, angle_precision="float64")
    model.set_factors(factors())
    nats, _ = score_with_gradient(model, DOCUMENTS, WEIGHTS, max_batch_tokens=140)
    for found, score in zip(
        nats, score_documents(model, DOCUMENTS, max_batch_tokens=140), strict=True
    ):
        np.testing.assert_array_equal(found, score.nll)
    for parameter in model.stage.parameters():
        assert parameter.requires_grad and parameter.grad is None


def test_transformers_angles_are_refused(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="float64 angles"):
        score_with_gradient(our_model(tiny_hf_model(), runtime), DOCUMENTS, WEIGHTS)
