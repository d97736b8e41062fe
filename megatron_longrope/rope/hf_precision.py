"""Inverse frequencies in float32, bit for bit as transformers computes them.

The source is `modeling_rope_utils.py` of transformers. Another order of the same operations differs
in the last bit of a frequency; multiplied by a position of 2M that bit is a visible angle. These
frequencies serve bit-for-bit parity alone; everything else is computed from λ in float64. What the
methods of transformers share stands here; an order of operations of one method's own stands in that
method's file.
"""

from __future__ import annotations

import torch
from torch import Tensor


def float32_longrope_frequencies(
    base: float, head_dim: int, rescale: tuple[float, ...]
) -> tuple[float, ...]:
    """Returns 1 / (λ_i · base^(2i/d)) as rope_type `longrope` rounds it, [head_dim/2].

    With λ = 1 these are the frequencies of rope_type `default`. Every method that brings no
    frequencies of its own is computed in this order.
    """
    scaled_powers = torch.tensor(rescale, dtype=torch.float32) * float32_powers(base, head_dim)
    return to_floats(1.0 / scaled_powers)


def float32_powers(base: float | Tensor, head_dim: int) -> Tensor:
    """Returns base^(2i/d) of every pair, float32 [head_dim/2]."""
    # transformers: base ** (torch.arange(0, dim, 2, dtype=int64).float() / dim)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    powers: Tensor = base**exponents
    return powers


def to_floats(frequencies: Tensor) -> tuple[float, ...]:
    """Returns the values of a float32 tensor as Python floats, which hold each of them exactly."""
    return tuple(frequencies.tolist())
