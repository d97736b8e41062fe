"""Checkpointed layer inputs kept in host memory between the forward and the backward pass.

megatron-core refuses its own offload together with recomputation. What recomputation keeps is one
hidden state per layer: the least there is to move, and at long context far less time to move than a
layer takes to compute.
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
    """Makes every forward pass of `block` under autograd keep its hidden states [tokens, batch,
    hidden_size] in host memory (pinned, where the device is another); the backward pass brings each
    back when it is due.

    The block is to recompute its layers in full: then these are what it keeps.
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
    """Copies on a stream of its own, so that computing goes on meanwhile."""

    def __init__(self, hidden_size: int) -> None:
        self.hidden_size = hidden_size
        self.stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None

    def pack(self, tensor: Tensor) -> Tensor | _Away:
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
        tensor.record_stream(
            self.stream
        )  # its memory is not given to others before the copy is done
        return _Away(host, tensor.device)

    def unpack(self, kept: Tensor | _Away) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if kept.device.type != "cuda":
            return kept.host
        with torch.cuda.stream(self.stream):
            back = kept.host.to(kept.device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self.stream)
        back.record_stream(torch.cuda.current_stream())
        return back
