"""Inputs of recomputed layers, kept in host memory between the forward and the backward pass.

megatron-core refuses its own offload together with recomputation. Full recomputation keeps one
hidden state per layer. That is little to move, and at long context moving it takes far less time
than computing a layer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Away(NamedTuple):
    """A tensor in host memory, and the device it is wanted on."""

    host: Tensor
    device: torch.device


def offload_inputs_of(block: nn.Module, hidden_size: int) -> None:
    """Makes `block` keep the hidden states that it saves for the backward pass in host memory.

    The block must recompute its layers in full: then the hidden states [tokens, batch, hidden_size]
    at the layers' inputs are what autograd saves. From a GPU they go to pinned memory, and the
    backward pass brings each one back when it needs it.
    """
    open_hooks: list[AbstractContextManager[Any]] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        mover = _Mover(hidden_size)
        hooks = torch.autograd.graph.saved_tensors_hooks(mover.pack, mover.unpack)
        hooks.__enter__()
        open_hooks.append(hooks)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        open_hooks.pop().__exit__(None, None, None)

    block.register_forward_pre_hook(enter)
    block.register_forward_hook(leave, always_call=True)


class _Mover:
    """Copies tensors to host memory and back, on a CUDA stream beside the one that computes."""

    def __init__(self, hidden_size: int) -> None:
        self.hidden_size = hidden_size
        self.stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None

    def pack(self, tensor: Tensor) -> Tensor | _Away:
        # Everything else that autograd saves in the block (weights, masks) stays where it is.
        if tensor.dim() != 3 or tensor.shape[-1] != self.hidden_size:
            return tensor
        host = torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
        )
        if not tensor.is_cuda:
            return _Away(host.copy_(tensor), tensor.device)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            host.copy_(tensor, non_blocking=True)
        # torch's allocator must not give the tensor's memory away before the copy is done.
        tensor.record_stream(self.stream)
        return _Away(host, tensor.device)

    def unpack(self, kept: Tensor | _Away) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if kept.device.type != "cuda":
            return kept.host
        # Copies on one stream are done in order: this one waits for the copy to the host.
        with torch.cuda.stream(self.stream):
            back = kept.host.to(kept.device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self.stream)
        back.record_stream(torch.cuda.current_stream())
        return back
