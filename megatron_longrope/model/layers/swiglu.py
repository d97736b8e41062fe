"""The gated MLP of megatron-core with an activation that goes once through memory and once back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu


class SwiGluMLP(MLP):
    """MLP of gate, up and down projections without biases; its layers, names and checkpoints are
    megatron-core's.

    megatron-core's own activation is compiled on GPUs. On a CPU it runs as a dozen element-wise
    steps with an array each: forward and backward of 2048 × 1280 float32 take 48 ms on a core,
    these 14 (docs/log.md).
    """

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:
        """Returns the output [tokens, 1, hidden_size] and no bias."""
        gate_up, _bias = self.linear_fc1(hidden_states)
        output, no_bias = self.linear_fc2(_SwiGlu.apply(gate_up))  # type: ignore[no-untyped-call]
        return output, no_bias


def swiglu_mlp(submodules: MLPSubmodules, tp_group: dist.ProcessGroup) -> type[SwiGluMLP]:
    """Returns SwiGluMLP as a class that needs a config alone: megatron-core gives its group to no
    MLP but its own, and warns of others.
    """

    class BoundMLP(SwiGluMLP):
        def __init__(self, config: TransformerConfig) -> None:
            super().__init__(config, submodules, tp_group=tp_group)

    return BoundMLP


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up for [gate; up] along the last dim; keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grads = torch.empty_like(gate_up)
        grad_gate, grad_up = grads.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        torch.mul(grad, silu(gate), out=grad_up)
        return grads
