"""Llama 3.1's scaling: by wavelength, with a blend between kept and interpolated pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.hf_precision import float32_llama3_frequencies
from megatron_longrope.rope.interpolation import RopeMethod

if TYPE_CHECKING:
    from typing import Self


class Llama3(RopeMethod):
    """λ = 1 for wavelengths below L/high_freq_factor tokens, λ = factor above L/low_freq_factor,
    blended between.

    L is the geometry's original length, whatever it is (8192 in Meta's release).
    """

    name: ClassVar[str] = "llama3"
    factor: float = Field(ge=1)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            both = f"{self.high_freq_factor} and {self.low_freq_factor}"
            raise ValueError(f"high_freq_factor is larger than low_freq_factor, got {both}")
        return self

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors, whatever the length."""
        frequencies = float32_llama3_frequencies(
            geometry.base,
            geometry.head_dim,
            self.factor,
            self.low_freq_factor,
            self.high_freq_factor,
            geometry.original_length,
        )
        return self._factors(
            geometry,
            tuple(self._rescale(i, geometry) for i in range(geometry.num_pairs)),
            round(self.factor * geometry.original_length),
            hf_inverse_frequencies=frequencies,
        )

    def _rescale(self, pair: int, geometry: RopeGeometry) -> float:
        turns = (
            geometry.original_length
            * math.pow(geometry.base, -2 * pair / geometry.head_dim)
            / (2 * math.pi)
        )
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        return 1.0 / ((1.0 - kept) / self.factor + kept)
