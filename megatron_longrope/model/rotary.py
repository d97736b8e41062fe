"""Turning queries and keys by the angles that came with the batch, a chunk of tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 1024
"""cos, sin and the turned halves exist for so many tokens at once."""


def rotate(x: Tensor, angles: Tensor, *, overwrite: bool = False) -> Tensor:
    """Returns x [tokens, heads, head_dim] with pair (i, i + head_dim/2) turned by `angles` [tokens,
    head_dim/2].

    Differentiable in both, unless `overwrite`, which turns x itself and returns it. cos and sin are
    taken in the angles' float32 and rounded to x's dtype, as Hugging Face does.
    """
    if overwrite:
        return _turn(x, angles, x)
    turned: Tensor = _Rotation.apply(x, angles)  # type: ignore[no-untyped-call]
    return turned


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor) -> Tensor:
        turned = _turn(x, angles, torch.empty_like(x, memory_format=torch.contiguous_format))
        ctx.save_for_backward(angles, turned if angles.requires_grad else None)
        return turned

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        angles, turned = ctx.saved_tensors
        grad_x = _turn(
            grad,
            angles,
            torch.empty_like(grad, memory_format=torch.contiguous_format),
            inverse=True,
        )
        return grad_x, None if turned is None else _angle_gradients(grad, turned, angles)


def _turn(x: Tensor, angles: Tensor, into: Tensor, inverse: bool = False) -> Tensor:
    """Writes the turned x `into` another tensor or x itself; `inverse` turns back."""
    for rows, angle in _chunks(x, angles):
        cos, sin = (f(angle).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
        if inverse:
            sin = -sin
        first, second = x[rows].chunk(2, dim=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        for place, half in zip(into[rows].chunk(2, dim=-1), turned, strict=True):
            place.copy_(half)
    return into


def _angle_gradients(grad: Tensor, turned: Tensor, angles: Tensor) -> Tensor:
    """With (a', b') the turned pair, da'/dφ = −b' and db'/dφ = a'; summed over heads."""
    result = torch.empty_like(angles)
    for rows, _ in _chunks(grad, angles):
        grad_first, grad_second = grad[rows].to(angles.dtype).chunk(2, dim=-1)
        first, second = turned[rows].to(angles.dtype).chunk(2, dim=-1)
        result[rows] = (grad_second * first - grad_first * second).sum(1)
    return result


def _chunks(x: Tensor, angles: Tensor) -> Any:
    assert angles.shape == (x.shape[0], x.shape[-1] // 2)
    for start in range(0, x.shape[0], CHUNK_TOKENS):
        rows = slice(start, start + CHUNK_TOKENS)
        yield rows, angles[rows]
