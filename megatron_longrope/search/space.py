"""The space of a search: bounds of λ per pair, its grid, and the choices of n̂ and attention factor.

A candidate on the grid is held as a genome of integers. Every gene is an index into a sorted list
of allowed values, so that no candidate ever holds 1.0700000000000003. For λ that list is the grid
(the multiples of `step`) together with the bounds themselves: a second search starts at fine-tuned
factors, which must stay allowed exactly even where they lie between two grid points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

Genome = NDArray[np.int64]
"""Indices of one candidate, [num_pairs + 2]: λ of each pair, then n̂, then the attention factor."""

PAPER_START_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
"""The values of n̂ that LongRoPE searches (arXiv 2402.13753, section 3.2)."""
UPPER_OVER_SCALE = 1.25
"""The largest λ over the scale s: LongRoPE searches λ between 1 and 1.25·s in steps of 0.01."""
_SAME = 1e-9
"""Relative distance below which a bound is taken for a grid point with rounding noise."""


def grid(lower: float, upper: float, step: float) -> tuple[float, ...]:
    """Returns the multiples of `step` in [lower, upper], each the float nearest to its decimal.

    >>> grid(1.05, 1.08, 0.01)
    (1.05, 1.06, 1.07, 1.08)
    """
    exact = Fraction(str(step))
    first = math.ceil(Fraction(str(lower)) / exact)
    last = math.floor(Fraction(str(upper)) / exact)
    return tuple(k * exact.numerator / exact.denominator for k in range(first, last + 1))


SEARCHED_ATTENTION_FACTORS = grid(1.0, 1.3, 0.01)
"""The default choices of the attention factor t."""


class Choices(TypedDict, total=False):
    """The fields of SearchSpace that do not depend on the stage of the search."""

    step: float
    start_tokens: tuple[int, ...]
    attention_factors: tuple[float, ...]


@dataclass(frozen=True)
class SearchSpace:
    """The candidates with λ_i between lower_i and upper_i on a grid, non-decreasing in i.

    `step` is the distance of grid points. n̂ and t are among `start_tokens` and
    `attention_factors`, both ascending; a single choice fixes the value, and
    `attention_factors=(1.0,)` is LongRoPE as published. The bounds of one pair are allowed values
    of every pair whose own bounds enclose them. Raises InputError where no non-decreasing λ fits
    the bounds.

    `values` are all allowed λ in ascending order; `low` and `high` are the smallest and the largest
    index that each gene may have.

    >>> space = SearchSpace.first_stage(num_pairs=4, scale=8)
    >>> space.project(Candidate((1.0, 3.004, 2.0, 12.0))).rescale
    (1.0, 2.5, 2.5, 10.0)
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    step: float = 0.01
    start_tokens: tuple[int, ...] = (0,)
    attention_factors: tuple[float, ...] = SEARCHED_ATTENTION_FACTORS
    values: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    low: Genome = field(init=False, repr=False, compare=False)
    high: Genome = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, kind in (
            ("lower", float),
            ("upper", float),
            ("start_tokens", int),
            ("attention_factors", float),
        ):
            object.__setattr__(self, name, tuple(kind(value) for value in getattr(self, name)))
        _check_choices("start_tokens", self.start_tokens, at_least=0)
        _check_choices("attention_factors", self.attention_factors, at_least=np.finfo(float).tiny)
        if not (math.isfinite(self.step) and self.step > 0):
            raise InputError("step", self.step, "must be finite and above 0")
        lower, upper = self._effective_bounds()
        # np.unique sorts; lower[0] and upper[-1] are the smallest and the largest bound
        values = np.unique(np.array([*self._grid(lower[0], upper[-1]), *lower, *upper]))
        choices = (len(self.start_tokens) - 1, len(self.attention_factors) - 1)
        object.__setattr__(self, "values", values)
        object.__setattr__(
            self, "low", np.array([*np.searchsorted(values, lower), 0, 0], dtype=np.int64)
        )
        object.__setattr__(
            self, "high", np.array([*np.searchsorted(values, upper), *choices], dtype=np.int64)
        )

    @classmethod
    def first_stage(cls, num_pairs: int, scale: float, **choices: Unpack[Choices]) -> SearchSpace:
        """Returns the space of a first extension: every λ from 1 to 1.25·`scale`."""
        return cls((1.0,) * num_pairs, (UPPER_OVER_SCALE * scale,) * num_pairs, **choices)

    @classmethod
    def second_stage(
        cls,
        fine_tuned: Sequence[float],
        scale: float,
        reach: float = 0.0,
        **choices: Unpack[Choices],
    ) -> SearchSpace:
        """Returns the space of a further extension: λ_i from the fine-tuned λ_ft,i to 1.25·`scale`.

        `scale` is the target length over the pretrained window. Where a fine-tuned factor exceeds
        1.25·`scale`, as in some published sets, or a start does, whose largest λ is `reach`, the
        largest of them is the upper bound.
        """
        upper = max(UPPER_OVER_SCALE * scale, reach, *fine_tuned)
        return cls(tuple(fine_tuned), (upper,) * len(fine_tuned), **choices)

    @classmethod
    def recovery(
        cls,
        fine_tuned: Sequence[float],
        upper: float | None = None,
        lower: float = 1.0,
        **choices: Unpack[Choices],
    ) -> SearchSpace:
        """Returns the space of a recovery for short inputs: every λ from `lower` to `upper`.

        The default of `upper` is the largest fine-tuned λ.
        """
        highest = max(fine_tuned) if upper is None else upper
        return cls((lower,) * len(fine_tuned), (highest,) * len(fine_tuned), **choices)

    @property
    def num_pairs(self) -> int:
        """Number of rotary pairs, head_dim / 2."""
        return len(self.lower)

    def contains(self, candidate: Candidate) -> bool:
        """Returns whether `candidate` is on the grid, within bounds and non-decreasing in λ."""
        return self.encode(candidate) is not None

    def admits(self, candidate: Candidate) -> bool:
        """Returns whether `candidate` keeps bounds, order and choices, on the grid or between.

        An attention factor between the smallest and the largest choice is admitted too: descents
        leave the grid.
        """
        self._check_length(candidate)
        rescale = np.array(candidate.rescale)
        lower, upper = self.bounds
        return (
            candidate.start_tokens in self.start_tokens
            and self.attention_factors[0]
            <= candidate.attention_factor
            <= self.attention_factors[-1]
            and bool(
                np.all(rescale >= lower)
                and np.all(rescale <= upper)
                and np.all(np.diff(rescale) >= 0)
            )
        )

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest λ of each pair, each [num_pairs] and non-decreasing."""
        return self.values[self.low[:-2]], self.values[self.high[:-2]]

    def shape(self, rescale: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns `rescale` [num_pairs] in the form of this space; here every form is allowed."""
        return rescale

    @property
    def coordinate_range(self) -> tuple[float, float]:
        """The coordinates of the smallest and of the largest λ of any pair."""
        lower, upper = self.bounds
        return math.log(lower[0]), math.log(upper[-1])

    def coordinates(self, rescale: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the numbers that searchers step evenly in, in the shape of λ; here log λ."""
        return np.log(rescale)

    def rescale_at(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns λ at coordinates; it may lie outside the bounds."""
        return np.exp(coordinates)

    def moved(self, rescale: float, by: float) -> float:
        """Returns the λ whose coordinate is that of `rescale` plus `by`."""
        return float(rescale * np.exp(by))

    def pull_back(
        self, by_rescale: NDArray[np.float64], rescale: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns ∂loss/∂coordinate [num_pairs] by the free pairs from ∂loss/∂λ by all pairs."""
        return by_rescale * rescale  # ∂loss/∂log λ = λ · ∂loss/∂λ

    def project(self, candidate: Candidate) -> Candidate:
        """Returns a nearby candidate of the space: λ made non-decreasing, rounded, then clipped."""
        self._check_length(candidate)
        monotone = _non_decreasing(np.array(candidate.rescale))
        pairs = np.clip(nearest(self.values, monotone), self.low[:-2], self.high[:-2])
        starts = np.array(self.start_tokens, dtype=float)
        start = nearest(starts, np.array([float(candidate.start_tokens)]))
        factor = nearest(np.array(self.attention_factors), np.array([candidate.attention_factor]))
        return self.decode(np.concatenate([pairs, start, factor]))

    def encode(self, candidate: Candidate) -> Genome | None:
        """Returns the genome of `candidate`, or None where the space does not contain it."""
        self._check_length(candidate)
        if (
            candidate.start_tokens not in self.start_tokens
            or candidate.attention_factor not in self.attention_factors
        ):
            return None
        rescale = np.array(candidate.rescale)
        pairs = np.minimum(np.searchsorted(self.values, rescale), len(self.values) - 1)
        start = self.start_tokens.index(candidate.start_tokens)
        factor = self.attention_factors.index(candidate.attention_factor)
        genome = np.array([*pairs, start, factor], dtype=np.int64)
        is_on_grid = np.array_equal(self.values[pairs], rescale)
        return genome if is_on_grid and self.allows(genome) else None

    def decode(self, genome: Genome) -> Candidate:
        """Returns the candidate of a genome of this space."""
        assert self.allows(genome), "a genome left its space"
        start, factor = int(genome[-2]), int(genome[-1])
        rescale = tuple(float(value) for value in self.values[genome[:-2]])
        return Candidate(rescale, self.start_tokens[start], self.attention_factors[factor])

    def allows(self, genome: Genome) -> bool:
        """Returns whether `genome` keeps the bounds and its λ does not decrease."""
        in_bounds = bool(np.all(genome >= self.low) and np.all(genome <= self.high))
        return in_bounds and bool(np.all(np.diff(genome[:-2]) >= 0))

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON values that define the space."""
        return {
            "lower": list(self.lower),
            "upper": list(self.upper),
            "step": self.step,
            "start_tokens": list(self.start_tokens),
            "attention_factors": list(self.attention_factors),
        }

    def _grid(self, lower: float, upper: float) -> Sequence[float]:
        """Returns the grid points in [lower, upper] that candidates may have."""
        return grid(lower, upper, self.step)

    def _effective_bounds(self) -> tuple[list[float], list[float]]:
        """Returns the bounds that a non-decreasing λ can reach, and checks those given.

        λ_i is at least every lower bound before it and at most every upper bound after it: a
        running maximum from the left, a running minimum from the right.
        """
        if not self.lower or len(self.lower) != len(self.upper):
            raise InputError(
                "upper",
                len(self.upper),
                f"one bound per pair, as many as lower bounds ({len(self.lower)})",
            )
        for name, bounds in (("lower", self.lower), ("upper", self.upper)):
            if not all(math.isfinite(bound) and bound > 0 for bound in bounds):
                raise InputError(name, bounds, "bounds are finite and above 0")
        lower = np.maximum.accumulate([_snap(bound, self.step) for bound in self.lower])
        from_last = [_snap(bound, self.step) for bound in reversed(self.upper)]
        upper = np.minimum.accumulate(from_last)[::-1]
        for pair in np.flatnonzero(lower > upper):
            rule = (
                f"pair {pair} needs an upper bound of at least {lower[pair]} for λ not to decrease"
            )
            raise InputError("upper", self.upper[pair], rule)
        return [float(bound) for bound in lower], [float(bound) for bound in upper]

    def _check_length(self, candidate: Candidate) -> None:
        if len(candidate.rescale) != self.num_pairs:
            raise InputError(
                "rescale",
                f"{len(candidate.rescale)} factors",
                f"this space has {self.num_pairs} pairs",
            )


def _check_choices(field_name: str, choices: Sequence[float], at_least: float) -> None:
    """Raises InputError unless `choices` are finite, ascending and not below `at_least`."""
    ascending = all(a < b for a, b in itertools.pairwise(choices))
    if not choices or not ascending or not all(math.isfinite(c) and c >= at_least for c in choices):
        raise InputError(
            field_name, choices, f"one or more ascending finite values of at least {at_least:g}"
        )


def _snap(value: float, step: float) -> float:
    """Returns the grid point that `value` is but for rounding noise, else `value` itself."""
    exact = Fraction(str(step))
    k = round(Fraction(str(value)) / exact)
    near = k * exact.numerator / exact.denominator
    return near if abs(near - value) <= _SAME * value else float(value)


def nearest(allowed: NDArray[np.float64], wanted: NDArray[np.float64]) -> Genome:
    """Returns the indices of the values in sorted `allowed` nearest to `wanted`, in its shape.

    Of two values at the same distance the lower one is taken.
    """
    right = np.clip(np.searchsorted(allowed, wanted), 1, max(len(allowed) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(allowed) - 1)
    return np.where(wanted - allowed[left] <= allowed[right] - wanted, left, right).astype(np.int64)


def _non_decreasing(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the non-decreasing sequence nearest to `values` in least squares.

    Isotonic regression by pooling adjacent violators: a value below the mean of the block before it
    is merged into that block, until the means of all blocks ascend.
    """
    blocks: list[tuple[float, int]] = []  # mean and size of each block so far
    for value in values:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] > mean:
            left, count = blocks.pop()
            mean, size = (left * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in blocks])
