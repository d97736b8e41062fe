"""The geometry of a model's rotary embedding, which every scaling method starts from."""

from __future__ import annotations

from pydantic import Field

from megatron_longrope.config import Length, StrictConfig

STANDSTILL = 1e6
"""The λ that stands for infinity: a pair whose period is the window turns by less than 0.001 rad
over 159 windows."""


class RopeGeometry(StrictConfig):
    """Rotary base, head_dim and pretrained window of a model."""

    base: float = Field(gt=1)
    """The base of θ_i = base^(−2i/head_dim)."""
    head_dim: int = Field(ge=4, multiple_of=2)
    """Dimensions of a head, all of which are rotated."""
    original_length: Length
    """Context length that the model was pretrained at, in tokens."""

    @property
    def num_pairs(self) -> int:
        """Number of pairs of dimensions, each turned by one angle: head_dim / 2."""
        return self.head_dim // 2
