"""Weights part of the way back to where a training began."""

from __future__ import annotations

import pytest
import torch

from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel
from megatron_longrope.runtime import Runtime
from megatron_longrope.training import WeightMerge
from megatron_longrope.training.optimizer import is_attention
from tests.support.tiny_models import our_model, single_runtime, tiny_hf_model

runtime = pytest.fixture(scope="module")(single_runtime)


def _weights(model: LongRopeModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _train_a_little(model: LongRopeModel) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for _, weight in model.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape), alpha=0.1)


def test_trained_weights_go_back_by_the_share_and_the_others_stay(runtime: Runtime) -> None:
    model = our_model(tiny_hf_model(), runtime)
    for name, weight in model.named_parameters():
        weight.requires_grad_(is_attention(name))
    before, merge = _weights(model), WeightMerge(model, 0.75)
    _train_a_little(model)
    after = _weights(model)
    merge.apply()
    for name, merged in _weights(model).items():
        expected = before[name].double() + 0.75 * (after[name].double() - before[name].double())
        torch.testing.assert_close(merged, expected.float(), rtol=0, atol=1e-7)
        assert is_attention(name) != torch.equal(merged, before[name])


def test_a_share_of_one_keeps_every_bit(runtime: Runtime) -> None:
    model = our_model(tiny_hf_model(), runtime)
    merge = WeightMerge(model, 1.0)
    _train_a_little(model)
    after = _weights(model)
    merge.apply()
    assert not merge.before and all(
        torch.equal(a, b) for a, b in zip(after.values(), _weights(model).values(), strict=True)
    )


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_shares_outside_are_refused(runtime: Runtime, share: float) -> None:
    with pytest.raises(InputError, match=r"merge=.*above 0 and at most 1"):
        WeightMerge(our_model(tiny_hf_model(), runtime), share)
