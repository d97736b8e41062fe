"""A space whose upper end is open: λ goes on to where a pair stands still.

Beyond 1.25·s what matters is the frequency θ/λ that is left, from 1/(1.25·s) of the pretrained one
down to nothing: a pair at λ = 10⁵ turns no less than one at 10⁶ by anything a model could notice,
though on a log scale they are as far apart as λ = 1 and 10. So steps there are even in 1/λ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.artifacts.geometry import STANDSTILL
from megatron_longrope.search.space import UPPER_OVER_SCALE, Choices, SearchSpace, grid

if TYPE_CHECKING:
    from typing_extensions import Unpack

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class OpenSpace(SearchSpace):
    """A space of λ up to any bound, with the steps of SearchSpace up to `knee` = K.

    Above K the coordinate that steps are even in is log K + 1 − K/λ, which goes on from log λ with
    the same slope and ends at log K + 1 for λ = ∞. The grid there is the multiples of `step`
    nearest to even steps of `step` · λ²/K² in λ, and the bounds.

    >>> from megatron_longrope.search import Candidate
    >>> space = OpenSpace.extension(num_pairs=4, scale=8)
    >>> space.project(Candidate((1.0, 3.004, 20.0, 1e6))).rescale
    (1.0, 3.0, 20.0, 1000000.0)
    """

    knee: float = 1.0

    @classmethod
    def extension(cls, num_pairs: int, scale: float, **choices: Unpack[Choices]) -> OpenSpace:
        """Returns the space of a first extension: every λ from 1 to where pairs stand still."""
        return cls.between((1.0,) * num_pairs, STANDSTILL, scale, **choices)

    @classmethod
    def between(
        cls, lower: Sequence[float], upper: float, scale: float, **choices: Unpack[Choices]
    ) -> OpenSpace:
        """Returns the space of λ_i from `lower` to one upper bound, with K = 1.25·`scale`."""
        return cls(tuple(lower), (upper,) * len(lower), knee=UPPER_OVER_SCALE * scale, **choices)

    @property
    def coordinate_range(self) -> tuple[float, float]:
        """The coordinates of the smallest and of the largest λ of any pair."""
        low, high = self.coordinates(np.array([self.values[0], self.values[-1]]))
        return float(low), float(high)

    def coordinates(self, rescale: Vector) -> Vector:
        """Returns log λ up to the knee K and log K + 1 − K/λ above it, in the shape of λ."""
        up_to_knee: Vector = np.log(np.minimum(rescale, self.knee))
        beyond: Vector = np.maximum(0.0, 1 - self.knee / rescale)
        return up_to_knee + beyond

    def rescale_at(self, coordinates: Vector) -> Vector:
        """Returns λ at coordinates; infinity from log K + 1 on."""
        beyond: Vector = np.maximum(0.0, coordinates - math.log(self.knee))
        up_to_knee: Vector = np.exp(coordinates - beyond)
        with np.errstate(divide="ignore"):
            rescale: Vector = up_to_knee / np.maximum(0.0, 1 - beyond)
        return rescale

    def moved(self, rescale: float, by: float) -> float:
        """Returns the λ whose coordinate is that of `rescale` plus `by`."""
        return float(self.rescale_at(self.coordinates(np.array(rescale)) + by))

    def pull_back(self, by_rescale: Vector, rescale: Vector) -> Vector:
        """Returns ∂loss/∂coordinate [num_pairs] from ∂loss/∂λ at `rescale`."""
        # above K, d(log K + 1 − K/λ)/dλ = K/λ², so dλ/dcoordinate = λ · λ/K
        stretch: Vector = np.maximum(1.0, rescale / self.knee)
        return super().pull_back(by_rescale, rescale) * stretch

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON values that define the space."""
        return {**super().to_json(), "knee": self.knee}

    def _grid(self, lower: float, upper: float) -> list[float]:
        """Returns the multiples of `step` up to the knee, and those that thin out above it."""
        exact = Fraction(str(self.step))
        # K/λ falls from 1 to 0 in steps of step/K
        shares = 1 - np.arange(1, math.ceil(self.knee / self.step)) * (self.step / self.knee)
        shares = shares[shares > self.step / self.knee / 2]  # 0, but for rounding, is no λ
        thinned = np.rint(self.knee / shares / self.step).astype(np.int64).tolist()
        above = (k * exact.numerator / exact.denominator for k in thinned)
        return [
            *grid(lower, min(self.knee, upper), self.step),
            *(value for value in above if lower <= value <= upper),
        ]
