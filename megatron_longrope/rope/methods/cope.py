"""CoPE, clipped RoPE (arXiv 2602.05258): pairs too slow for the window are faded out."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.artifacts.geometry import STANDSTILL, RopeGeometry
from megatron_longrope.rope.methods.base import METHODS, RopeMethod


class Cope(RopeMethod):
    """A cosine taper slows the m slowest pairs, the last of them almost to a standstill.

    The frequency of slow pair j = 0 … m−1, counted from the fastest of them, is θ·w_j with
    w_j = ½(1 + cos(π·j/(m−1))), so λ = 1/w_j; all other pairs keep λ = 1 (arXiv 2602.05258).

    The period 2π/θ_i of those pairs exceeds the pretrained window, so longer inputs show the model
    angles that it has never seen. The smooth taper avoids the ringing that cutting the pairs off
    would cause. There is no scale: the factors are the same for any length. A search that starts
    from them needs `space: open`. On top of fine-tuned factors the taper begins at the pair that it
    begins at without them.

    Differences from the authors' published code (`modeling_cope.py`):

    - It clips a fixed number of pairs, the last 20 of 64 (Llama 3 8B). The default here is every
      pair whose period exceeds `onset` times the window; `num_clipped=20` is the authors' choice.
    - It gives the last pair the frequency 0. λ must be a finite number, so here it is `ceiling`.
    - The authors train the clipped model further; `--method cope` evaluates it without training.

    With m = 1 nothing is clipped, as in the authors' code: the taper begins at w_0 = 1.
    """

    name: ClassVar[str] = "cope"
    scale_setting: ClassVar[str | None] = None
    starts_searches: ClassVar[bool] = True
    stops_pairs: ClassVar[bool] = True
    goes_on_tuned: ClassVar[bool] = True

    onset: float = Field(default=1.0, gt=0)
    """Pairs are clipped whose period exceeds this multiple of the pretrained window."""
    num_clipped: int | None = Field(default=None, ge=0)
    """Number of slowest pairs to clip instead; more than all means all."""
    ceiling: float = Field(default=STANDSTILL, gt=1)
    """The largest λ, which stands for infinity."""

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ = 1, then the taper over the slowest pairs, whatever the length."""
        clipped = self._count(geometry)
        # the published taper w_j; max(…, 1) because m = 1 would divide by 0
        shares = (0.5 * (1 + math.cos(math.pi * j / max(clipped - 1, 1))) for j in range(clipped))
        tapered = (1 / max(share, 1 / self.ceiling) for share in shares)
        return self.make_factors(
            geometry,
            ((1.0,) * (geometry.num_pairs - clipped) + tuple(tapered)),
            max(geometry.original_length, length or 0),
        )

    def _count(self, geometry: RopeGeometry) -> int:
        """Returns m, the number of slowest pairs that are clipped."""
        if self.num_clipped is not None:
            return min(self.num_clipped, geometry.num_pairs)
        # the wavelength of pair i in tokens: 2π/θ_i = 2π·base^(2i/d)
        periods = (
            2 * math.pi * geometry.base ** (2 * i / geometry.head_dim)
            for i in range(geometry.num_pairs)
        )
        return sum(period > self.onset * geometry.original_length for period in periods)


METHODS.register(Cope.name, Cope)
