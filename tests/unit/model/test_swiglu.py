"""The gated activation against autograd in float64, and the MLP in its place under megatron-core's
names."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from megatron_longrope.model.layers.swiglu import SwiGluMLP, _SwiGlu
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import our_model, single_runtime, tiny_hf_model

runtime = pytest.fixture(scope="module")(single_runtime)


def test_values_and_gradients_are_autograds_in_float64() -> None:
    torch.manual_seed(0)
    gate_up = (4 * torch.randn(5, 1, 14, dtype=torch.float64)).requires_grad_()
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(_SwiGlu.apply(gate_up), silu(gate) * up, rtol=0, atol=0)
    assert torch.autograd.gradcheck(_SwiGlu.apply, gate_up)


def test_layers_have_it_and_keep_megatron_cores_names_and_groups(runtime: Runtime) -> None:
    model = our_model(tiny_hf_model(), runtime)
    for layer in model.stage.decoder.layers:
        assert isinstance(layer.mlp, SwiGluMLP)
        assert layer.mlp.linear_fc1.tp_group is layer.mlp.linear_fc2.tp_group is runtime.groups.tp
    names = [name for name, _ in model.named_parameters() if ".mlp." in name]
    assert {name.split(".mlp.")[1] for name in names} == {"linear_fc1.weight", "linear_fc2.weight"}
