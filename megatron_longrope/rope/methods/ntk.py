"""NTK-aware scaling: one larger base instead of one slower position."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.methods.base import METHODS, RopeMethod


class NtkAware(RopeMethod):
    """A larger base, base·s^(d/(d-2)): the fastest pair is kept, the slowest interpolated by s;
    λ_i = s^(2i/(d-2)) (YaRN's paper, arXiv 2309.00071, section 3.1).
    """

    name: ClassVar[str] = "ntk"
    is_baseline: ClassVar[bool] = True
    starts_searches: ClassVar[bool] = True
    goes_on_tuned: ClassVar[bool] = True

    scale: float = Field(ge=1)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ_i = s^(2i/(d-2)), whatever the length."""
        return self._factors(
            geometry,
            ntk_rescale(geometry, self.scale),
            round(self.scale * geometry.original_length),
        )


def ntk_rescale(geometry: RopeGeometry, scale: float) -> tuple[float, ...]:
    """Returns λ_i = scale^(2i/(d-2)), one per pair."""
    last = geometry.head_dim - 2
    return tuple(float(scale ** (2 * i / last)) for i in range(geometry.num_pairs))


METHODS.register(NtkAware.name, NtkAware)
