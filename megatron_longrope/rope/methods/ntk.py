"""NTK-aware scaling: a larger rotary base, which slows a pair the more the slower it already is."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.methods.base import METHODS, RopeMethod


class NtkAware(RopeMethod):
    """A rotary base of base·s^(d/(d−2)), which is λ_i = s^(2i/(d−2)).

    The fastest pair is kept (λ_0 = 1), the slowest is interpolated by s (λ_{d/2−1} = s), as in
    YaRN's paper (arXiv 2309.00071), section 3.1.

    >>> geometry = RopeGeometry(base=10000.0, head_dim=6, original_length=4096)
    >>> NtkAware(scale=4).factors(geometry).rescale
    (1.0, 2.0, 4.0)
    """

    name: ClassVar[str] = "ntk"
    is_baseline: ClassVar[bool] = True
    starts_searches: ClassVar[bool] = True
    goes_on_tuned: ClassVar[bool] = True

    scale: float = Field(ge=1)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ_i = s^(2i/(d−2)), whatever the length."""
        return self.make_factors(
            geometry,
            ntk_rescale(geometry, self.scale),
            round(self.scale * geometry.original_length),
        )


def ntk_rescale(geometry: RopeGeometry, scale: float) -> tuple[float, ...]:
    """Returns λ_i = scale^(2i/(d−2)) of each pair i = 0 … d/2 − 1."""
    # (base·s^(d/(d−2)))^(−2i/d) = base^(−2i/d) · s^(−2i/(d−2)) = θ_i/λ_i
    last = geometry.head_dim - 2
    return tuple(float(scale ** (2 * i / last)) for i in range(geometry.num_pairs))


METHODS.register(NtkAware.name, NtkAware)
