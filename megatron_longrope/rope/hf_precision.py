"""transformers' inverse frequencies in its own float32 order of operations
(`modeling_rope_utils.py`).

A different order of the same formula differs in the last bit, which at long positions is a visible
angle. These are for bit-for-bit parity only; every other computation takes λ and float64. Where a
method of transformers has an order of its own, that stands in the method's file; here is what they
share.
"""

from __future__ import annotations

import torch
from torch import Tensor


def float32_longrope_frequencies(
    base: float, head_dim: int, rescale: tuple[float, ...]
) -> tuple[float, ...]:
    """Returns longrope's 1 / (λ · base^(2i/d)), with λ = 1 default's; float32 values [head_dim/2].

    This is the order for every method that brings no frequencies of its own.
    """
    return to_floats(
        1.0 / (torch.tensor(rescale, dtype=torch.float32) * float32_powers(base, head_dim))
    )


def float32_powers(base: float | Tensor, head_dim: int) -> Tensor:
    """Returns base^(2i/d) of every pair, float32 [head_dim/2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    powers: Tensor = base**exponents
    return powers


def to_floats(frequencies: Tensor) -> tuple[float, ...]:
    """Returns the values of a float32 tensor, each exactly."""
    return tuple(frequencies.tolist())
