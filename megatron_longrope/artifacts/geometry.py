"""What of a model's rotary embedding every scaling method needs to know."""

from __future__ import annotations

from pydantic import Field

from megatron_longrope.config import Length, StrictConfig


class RopeGeometry(StrictConfig):
    """Rotary base, head_dim (all dimensions of a head are rotated), and the window in tokens it was
    trained at."""

    base: float = Field(gt=1)
    head_dim: int = Field(ge=4, multiple_of=2)
    original_length: Length

    @property
    def num_pairs(self) -> int:
        """Pairs of dimensions turned by one angle each: head_dim / 2."""
        return self.head_dim // 2
