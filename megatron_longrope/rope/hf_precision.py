"""transformers' inverse frequencies in its own float32 order of operations
(`modeling_rope_utils.py`).

A different order of the same formula differs in the last bit, which at long positions is a visible
angle. These are for bit-for-bit parity only; every other computation takes λ and float64. All
return float32 values [head_dim/2].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def float32_longrope_frequencies(
    base: float, head_dim: int, rescale: tuple[float, ...]
) -> tuple[float, ...]:
    """longrope, and with λ = 1 default: 1 / (λ · base^(2i/d))."""
    return _values(
        1.0 / (torch.tensor(rescale, dtype=torch.float32) * base ** _exponents(head_dim))
    )


def float32_linear_frequencies(base: float, head_dim: int, factor: float) -> tuple[float, ...]:
    """linear: (1 / base^(2i/d)) / factor."""
    return _values(1.0 / (base ** _exponents(head_dim)) / factor)


def float32_dynamic_frequencies(
    base: float, head_dim: int, factor: float, original_length: int, length: int
) -> tuple[float, ...]:
    """dynamic: a new base, which transformers computes in float32 for inputs beyond the window, in
    float64 before."""
    seq_len: int | Tensor = torch.tensor(length) if length > original_length else original_length
    ratio = (factor * seq_len / original_length) - (factor - 1)
    new_base = base * ratio ** (head_dim / (head_dim - 2))
    return _values(1.0 / (new_base ** _exponents(head_dim)))


def float32_yarn_frequencies(
    base: float, head_dim: int, factor: float, correction_range: tuple[float, float]
) -> tuple[float, ...]:
    """yarn: interpolated and unscaled frequencies blended over the pairs of `correction_range`."""
    low, high = correction_range
    powers = base ** _exponents(head_dim)
    ramp = torch.clamp(
        (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1
    )
    unscaled_share = 1 - ramp
    return _values(1.0 / (factor * powers) * (1 - unscaled_share) + 1.0 / powers * unscaled_share)


def float32_llama3_frequencies(
    base: float,
    head_dim: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_length: int,
) -> tuple[float, ...]:
    """llama3: long wavelengths interpolated, short ones kept, blended between."""
    frequencies = 1.0 / (base ** _exponents(head_dim))
    wavelengths = 2 * math.pi / frequencies
    low_wavelength, high_wavelength = (
        original_length / low_freq_factor,
        original_length / high_freq_factor,
    )
    scaled = torch.where(wavelengths > low_wavelength, frequencies / factor, frequencies)
    smooth = (original_length / wavelengths - low_freq_factor) / (
        high_freq_factor - low_freq_factor
    )
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    is_medium = ~(wavelengths < high_wavelength) * ~(wavelengths > low_wavelength)
    return _values(torch.where(is_medium, blended, scaled))


def _exponents(head_dim: int) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim


def _values(frequencies: Tensor) -> tuple[float, ...]:
    return tuple(frequencies.tolist())
