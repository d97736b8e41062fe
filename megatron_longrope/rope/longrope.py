"""LongRoPE factors as a method: one searched list inside the window, one beyond it."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import (
    MAX_ATTENTION_FACTOR,
    FactorRange,
    FactorSet,
    RopeFactors,
)
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.interpolation import RopeMethod


class LongRope(RopeMethod):
    """λ = `short` for inputs up to the original length L and `long` beyond (transformers'
    `longrope`).

    `attention_factor` None: √(1 + ln s / ln L), used for short inputs too.
    """

    name: ClassVar[str] = "longrope"
    short: tuple[float, ...]
    long: tuple[float, ...]
    scale: float = Field(ge=1)
    attention_factor: float | None = Field(default=None, gt=0, le=MAX_ATTENTION_FACTOR)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors for `length` tokens; None: for the target length."""
        window = geometry.original_length
        is_short = length is not None and length <= window
        return self._factors(
            geometry,
            self.short if is_short else self.long,
            window if is_short else round(self.scale * window),
            attention_factor=self.temperature(geometry),
        )

    def factor_set(self, geometry: RopeGeometry, length: int | None = None) -> FactorSet:
        """Returns both lists with the window between them."""
        window = geometry.original_length
        short = FactorRange(up_to=window, factors=self.factors(geometry, window))
        return FactorSet(ranges=(short, FactorRange(up_to=None, factors=self.factors(geometry))))

    def temperature(self, geometry: RopeGeometry) -> float:
        """Returns the attention factor t."""
        if self.attention_factor is not None:
            return self.attention_factor
        return longrope_attention_factor(self.scale, geometry.original_length)


def longrope_attention_factor(scale: float, original_length: int) -> float:
    """Returns Microsoft's √(1 + ln s / ln L); 1 without extension."""
    return 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original_length))
