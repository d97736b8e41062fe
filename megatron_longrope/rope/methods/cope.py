"""CoPE, clipped RoPE (arXiv 2602.05258): pairs that never complete a turn in the window fade to
none."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.methods.base import METHODS, RopeMethod


class Cope(RopeMethod):
    """The slowest m pairs are turned less and less, the last one hardly at all: θ_i·w_j with
    w_j = ½(1 + cos(π·j/(m-1))), j = 0 … m-1 counting from the first of them; λ = 1/w_j, and 1 for
    all other pairs (arXiv 2602.05258).

    Those pairs have a period 2π/θ_i beyond the pretrained window, so longer inputs show the model
    angles it has never seen; the smooth taper avoids the ringing that cutting them off would give.
    No scale: the factors are the same for any length. As a search start, λ are clipped to the
    search's own bounds like those of every start.

    Different from the authors' published code (`modeling_cope.py`):

    - It clips a fixed number, the last 20 of 64 pairs (Llama 3 8B); here it is by default every
      pair whose period exceeds `onset` times the window, and `num_clipped=20` is theirs.
    - It gives the last pair the frequency 0; λ is a finite number, so here it is `ceiling`. At the
      default, a pair with the window as its period turns by 0.001 rad over 159 windows.
    - They train the clipped model further; `--method cope` measures it as it is.

    With m = 1 nothing is clipped, as in theirs: the taper begins at 1.
    """

    name: ClassVar[str] = "cope"
    scale_setting: ClassVar[str | None] = None
    starts_searches: ClassVar[bool] = True

    onset: float = Field(default=1.0, gt=0)
    """Of the pretrained window: pairs with a longer period are clipped."""
    num_clipped: int | None = Field(default=None, ge=0)
    """Clip so many of the slowest pairs instead, at most all."""
    ceiling: float = Field(default=1e6, gt=1)
    """The largest λ, in place of infinity."""

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ = 1, then the taper over the slowest pairs, whatever the length."""
        clipped = self._count(geometry)
        shares = (0.5 * (1 + math.cos(math.pi * j / max(clipped - 1, 1))) for j in range(clipped))
        tapered = (1 / max(share, 1 / self.ceiling) for share in shares)
        return self._factors(
            geometry,
            ((1.0,) * (geometry.num_pairs - clipped) + tuple(tapered)),
            max(geometry.original_length, length or 0),
        )

    def _count(self, geometry: RopeGeometry) -> int:
        """Returns m, the number of pairs that are clipped."""
        if self.num_clipped is not None:
            return min(self.num_clipped, geometry.num_pairs)
        periods = (
            2 * math.pi * geometry.base ** (2 * i / geometry.head_dim)
            for i in range(geometry.num_pairs)
        )
        return sum(period > self.onset * geometry.original_length for period in periods)


METHODS.register(Cope.name, Cope)
