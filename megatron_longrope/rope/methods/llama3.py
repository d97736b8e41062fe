"""Llama 3.1's scaling: short wavelengths kept, long ones interpolated, a blend between."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.hf_reading import HfRopeType
from megatron_longrope.rope.hf_settings import ORIGINAL_KEY
from megatron_longrope.rope.methods.base import METHODS, RopeMethod

if TYPE_CHECKING:
    from typing import Self

_KEYS = frozenset({"factor", ORIGINAL_KEY, "low_freq_factor", "high_freq_factor"})


class Llama3(RopeMethod):
    """Pairs of long wavelength are interpolated by `factor`, those of short wavelength are kept.

    λ = 1 for wavelengths below L/high_freq_factor tokens, λ = factor above L/low_freq_factor, and
    between them the frequencies are blended (Meta's Llama 3.1 code; transformers' `llama3`). L is
    the geometry's original length, 8192 in Meta's release.
    """

    name: ClassVar[str] = "llama3"
    scale_setting: ClassVar[str | None] = "factor"
    hf: ClassVar[HfRopeType | None] = HfRopeType("llama3", keys=_KEYS, required=_KEYS)

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
        """Returns 1/λ_i = (1 − k_i)/factor + k_i, whatever the length.

        k rises from 0 to 1 between `low_freq_factor` and `high_freq_factor` turns in the window.
        """
        return self.make_factors(
            geometry,
            tuple(self._rescale(i, geometry) for i in range(geometry.num_pairs)),
            round(self.factor * geometry.original_length),
            hf_inverse_frequencies=self._float32_frequencies(geometry),
        )

    def _rescale(self, pair: int, geometry: RopeGeometry) -> float:
        """Returns λ of one pair."""
        # turns in the window: L/wavelength = L·θ_i/2π
        frequency = math.pow(geometry.base, -2 * pair / geometry.head_dim)
        turns = geometry.original_length * frequency / (2 * math.pi)
        # the ramp k_i, which Meta's code calls smooth
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        return 1.0 / ((1.0 - kept) / self.factor + kept)

    def _float32_frequencies(self, geometry: RopeGeometry) -> tuple[float, ...]:
        """Returns the frequencies rounded as transformers rounds them, float32 values."""
        import torch

        from megatron_longrope.rope.hf_precision import float32_powers, to_floats

        factor, low, high = self.factor, self.low_freq_factor, self.high_freq_factor
        window = geometry.original_length
        frequencies = 1.0 / float32_powers(geometry.base, geometry.head_dim)
        wavelengths = 2 * math.pi / frequencies
        is_long = wavelengths > window / low
        is_short = wavelengths < window / high
        scaled = torch.where(is_long, frequencies / factor, frequencies)
        smooth = (window / wavelengths - low) / (high - low)
        blended = (1 - smooth) * scaled / factor + smooth * scaled
        return to_floats(torch.where(~is_short * ~is_long, blended, scaled))


METHODS.register(Llama3.name, Llama3)
