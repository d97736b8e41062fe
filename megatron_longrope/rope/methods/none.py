"""No scaling: the rotary embedding of the pretrained model, baseline of every other method."""

from __future__ import annotations

from typing import ClassVar

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.hf_reading import HfRopeType
from megatron_longrope.rope.methods.base import METHODS, RopeMethod


class NoScaling(RopeMethod):
    """The rotary embedding of pretraining: λ_i = 1 for every pair (transformers' `default`)."""

    name: ClassVar[str] = "none"
    scale_setting: ClassVar[str | None] = None
    is_baseline: ClassVar[bool] = True
    hf: ClassVar[HfRopeType | None] = HfRopeType("default")

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ = 1 for every pair, whatever the length."""
        return self.make_factors(geometry, (1.0,) * geometry.num_pairs, geometry.original_length)


METHODS.register(NoScaling.name, NoScaling)
