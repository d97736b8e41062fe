"""The rotation of queries and keys by the batch's angles, a chunk of tokens at a time.

Pair i of a head is (a, b) = (x[i], x[i + head_dim/2]), as in Hugging Face and megatron-core. By
angle φ it turns into (a', b') = (a·cos φ − b·sin φ, b·cos φ + a·sin φ). The attention factor does
not appear here: it is part of the softmax scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 1024
"""Tokens for which cos, sin and the rotated halves exist at once."""


def rotate(x: Tensor, angles: Tensor, *, overwrite: bool = False) -> Tensor:
    """Returns x [tokens, heads, head_dim] rotated by `angles` [tokens, head_dim/2] in radians.

    Differentiable by both. With `overwrite` x itself is rotated and returned, without gradients.
    cos and sin are computed in the angles' float32 and rounded to x's dtype, as Hugging Face does.

    >>> x = torch.tensor([[[1.0, 0.0]]])  # one token, one head, one pair
    >>> rotate(x, torch.tensor([[torch.pi / 2]])).round(decimals=6).abs().tolist()
    [[[0.0, 1.0]]]
    """
    if overwrite:
        return _turn(x, angles, x)
    turned: Tensor = _Rotation.apply(x, angles)  # type: ignore[no-untyped-call]
    return turned


class _Rotation(torch.autograd.Function):
    """The rotation with a backward pass that keeps less than autograd would.

    A rotation's inverse is the rotation by −φ, so the gradient by x needs the angles alone. The
    gradient by the angles needs the rotated x, which is kept only where the angles want one.
    """

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
    """Writes the rotated x into `into`, which may be x itself; `inverse` rotates by −φ."""
    for rows, angle in _chunks(x, angles):
        cos, sin = (f(angle).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
        if inverse:
            sin = -sin
        first, second = x[rows].chunk(2, dim=-1)
        # Both halves are computed before either is written: `into` may be x.
        turned = first * cos - second * sin, second * cos + first * sin
        for place, half in zip(into[rows].chunk(2, dim=-1), turned, strict=True):
            place.copy_(half)
    return into


def _angle_gradients(grad: Tensor, turned: Tensor, angles: Tensor) -> Tensor:
    """Returns ∂loss/∂φ [tokens, head_dim/2], summed over heads, which share their angles.

    With (a', b') the rotated pair, ∂a'/∂φ = −b' and ∂b'/∂φ = a', so by the chain rule
    ∂loss/∂φ = Σ_heads (∂loss/∂b' · a' − ∂loss/∂a' · b').
    """
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
