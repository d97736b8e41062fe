"""Rotary angles: exact ones in float64, and transformers' float32 ones for parity tests."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.errors import InputError
from megatron_longrope.rope.hf_precision import float32_longrope_frequencies

AnglePrecision = Literal["float64", "hf"]


def inverse_frequencies(base: float, head_dim: int) -> Tensor:
    """Returns θ_i = base^(−2i/head_dim) in radians per position, float64 [head_dim/2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return torch.pow(torch.tensor(base, dtype=torch.float64), -exponents)


def rotary_angles(
    positions: Tensor,
    factors: RopeFactors,
    precision: AnglePrecision = "float64",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the angle in radians of every pair at integer `positions` [..., seq], in `dtype`
    [..., seq, head_dim/2].

    "float64": float64 product, reduced to [−π, π], then float32; error below 1.3e-7 rad up to 2M
    positions. "hf": transformers' order of operations in float32, not reduced; 0.1 to 0.2 rad off
    at 2M. Positions below `factors.start_tokens` turn unscaled (λ = 1). The result lies on the
    device of `positions`.
    """
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise InputError("positions", positions.dtype, "rotary positions are integers")
    if precision == "float64":
        return _exact_angles(positions, factors).to(dtype)
    if precision == "hf":
        return _hf_angles(positions, factors).to(dtype)
    raise InputError("angle_precision", precision, "one of float64, hf")


def angle_derivatives(positions: Tensor, factors: RopeFactors) -> Tensor:
    """Returns ∂angle/∂λ of every pair at integer `positions` [..., seq], −n·θ_i/λ_i², float64 [...,
    seq, head_dim/2].

    Zero below `factors.start_tokens`, where λ has no say.
    """
    slopes = (
        -inverse_frequencies(factors.base, factors.head_dim)
        / torch.tensor(factors.rescale, dtype=torch.float64).square()
    )
    return _outer(positions, torch.zeros_like(slopes), slopes, factors.start_tokens, torch.float64)


def _exact_angles(positions: Tensor, factors: RopeFactors) -> Tensor:
    original = inverse_frequencies(factors.base, factors.head_dim)
    rescaled = original / torch.tensor(factors.rescale, dtype=torch.float64)
    angles = _outer(positions, original, rescaled, factors.start_tokens, torch.float64)
    return angles.sub_(angles.div(2 * math.pi).round_().mul_(2 * math.pi))


def _hf_angles(positions: Tensor, factors: RopeFactors) -> Tensor:
    ones = (1.0,) * len(factors.rescale)
    original = float32_longrope_frequencies(factors.base, factors.head_dim, ones)
    rescaled = factors.hf_inverse_frequencies
    if rescaled is None:
        rescaled = float32_longrope_frequencies(factors.base, factors.head_dim, factors.rescale)
    return _outer(
        positions,
        torch.tensor(original),
        torch.tensor(rescaled),
        factors.start_tokens,
        torch.float32,
    )


def _outer(
    positions: Tensor, original: Tensor, rescaled: Tensor, start_tokens: int, dtype: torch.dtype
) -> Tensor:
    """Returns position · frequency in `dtype`, [..., seq, head_dim/2], unscaled below
    `start_tokens`."""
    column = positions.unsqueeze(-1)
    frequencies = rescaled.to(device=positions.device, dtype=dtype)
    if start_tokens:
        frequencies = torch.where(
            column < start_tokens, original.to(device=positions.device, dtype=dtype), frequencies
        )
    return column.to(dtype) * frequencies
