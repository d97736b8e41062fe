"""Position interpolation (arXiv 2306.15595): all positions divided by the scale."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.hf_reading import FACTOR, HfRopeType
from megatron_longrope.rope.methods.base import METHODS, RopeMethod


class PositionInterpolation(RopeMethod):
    """Every pair turns s times slower, λ_i = s, so that all angles stay within the trained range.

    Source: arXiv 2306.15595, eq. 4; transformers calls it `linear`.
    """

    name: ClassVar[str] = "pi"
    is_baseline: ClassVar[bool] = True
    starts_searches: ClassVar[bool] = True
    goes_on_tuned: ClassVar[bool] = True
    hf: ClassVar[HfRopeType | None] = HfRopeType("linear", keys=FACTOR, required=FACTOR)

    scale: float = Field(ge=1)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ = s for every pair, whatever the length."""
        return self.make_factors(
            geometry,
            (float(self.scale),) * geometry.num_pairs,
            round(self.scale * geometry.original_length),
            hf_inverse_frequencies=self._float32_frequencies(geometry),
        )

    def _float32_frequencies(self, geometry: RopeGeometry) -> tuple[float, ...]:
        """Returns (1 / base^(2i/d)) / s, rounded in this order as transformers does."""
        from megatron_longrope.rope.hf_precision import float32_powers, to_floats  # imports torch

        return to_floats(1.0 / float32_powers(geometry.base, geometry.head_dim) / self.scale)


METHODS.register(PositionInterpolation.name, PositionInterpolation)
