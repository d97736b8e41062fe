"""Rotary angles: computed in float64, or in float32 exactly as transformers computes them.

Angles grow with the position, and so does their rounding error in float32: at position 2M the
fastest pair has turned 2M radians, where neighbouring float32 numbers are 0.125 apart. The float64
product is therefore reduced modulo 2π before it is rounded to float32.
"""

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
    """Returns the angle in radians by which each pair turns at each position.

    LongRoPE, arXiv 2402.13753, eq. 2: n·θ_i for n < n̂ and n·θ_i/λ_i from there on. `positions` are
    integers [..., seq]; the result is [..., seq, head_dim/2] in `dtype`, on their device.

    `precision` "float64" multiplies in float64 and reduces to [−π, π] before rounding to `dtype`:
    in float32 the error stays below 1.3e-7 rad up to 2M positions. "hf" repeats transformers' order
    of operations in float32 without reducing: 0.1 to 0.2 rad off at 2M. Raises InputError for
    positions that are no integers and for any other precision.

    >>> from megatron_longrope.rope import PositionInterpolation, RopeGeometry
    >>> geometry = RopeGeometry(base=10000.0, head_dim=4, original_length=64)
    >>> factors = PositionInterpolation(scale=2).factors(geometry)
    >>> rotary_angles(torch.tensor([0, 1, 2]), factors).tolist()
    [[0.0, 0.0], [0.5, 0.004999999888241291], [1.0, 0.009999999776482582]]
    """
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise InputError("positions", positions.dtype, "rotary positions are integers")
    if precision == "float64":
        return _exact_angles(positions, factors).to(dtype)
    if precision == "hf":
        return _hf_angles(positions, factors).to(dtype)
    raise InputError("angle_precision", precision, "one of float64, hf")


def angle_derivatives(positions: Tensor, factors: RopeFactors) -> Tensor:
    """Returns ∂angle/∂λ_i = −n·θ_i/λ_i² of each pair at each position.

    `positions` are integers [..., seq]; the result is float64 [..., seq, head_dim/2]. It is zero
    below `factors.start_tokens`, where the angle does not depend on λ.
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
    # a − 2π·round(a/2π): cos and sin are the same, and float32 now rounds a number within [−π, π]
    return angles.sub_(angles.div(2 * math.pi).round_().mul_(2 * math.pi))


def _hf_angles(positions: Tensor, factors: RopeFactors) -> Tensor:
    """Returns the angles in float32, from frequencies rounded as transformers rounds them."""
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
    """Returns position · frequency [..., seq, head_dim/2], with `original` below `start_tokens`."""
    column = positions.unsqueeze(-1)
    frequencies = rescaled.to(device=positions.device, dtype=dtype)
    if start_tokens:
        frequencies = torch.where(
            column < start_tokens, original.to(device=positions.device, dtype=dtype), frequencies
        )
    return column.to(dtype) * frequencies
