"""Stopping candidates early: document by document, paired with the incumbent's losses on the same
documents.

A ladder puts shorter contexts before the documents: cheap to score, and hopeless there is often
hopeless at length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from megatron_longrope.artifacts.evaluations import Evaluation
from megatron_longrope.config import Length, StrictConfig
from megatron_longrope.search.types import Judge

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
_CLOSEST = 0.15
"""Share of the completed evaluations that are learned from: those far from the incumbent are not
the hard decisions."""
_FEWEST = 8
"""Completed evaluations without which nothing is stopped: the spread would be a guess."""
_FIRST_RULE = 12
"""Evaluations of a search after which its first rule is made, inside a round if need be: first
rounds are large."""


class EarlyStopping(StrictConfig):
    """When a candidate is hopeless: worse than the incumbent so far, and over all documents it
    would be worse even if the documents still to come were as kind to it as `error_level` leaves
    possible. How the mean difference to the incumbent over all documents follows from the one over
    the first m is learned from the completed candidates closest to the incumbent: some documents
    mind a change of factors more than others, and that is no surprise.
    """

    error_level: float = Field(default=0.01, ge=1e-4, lt=0.5)
    """One-sided, of each single decision."""
    ladder: tuple[Length, ...] = ()
    """Shorter lengths, ascending, that a candidate is scored at first, on the documents' first
    tokens: what it loses there only decides whether it is scored at length."""

    @field_validator("ladder")
    @classmethod
    def _ascending(cls, ladder: tuple[int, ...]) -> tuple[int, ...]:
        if list(ladder) != sorted(set(ladder)) or any(length < 2 for length in ladder):
            raise ValueError(f"ladder: lengths of 2 tokens or more that ascend, got {list(ladder)}")
        return ladder

    def judge(self, told: Sequence[Evaluation]) -> Judge | None:
        """Returns the rule learned from what was `told`, against the best of it; None while that is
        too little."""
        incumbent = best_usable(told)
        if incumbent is None:
            return None
        differences = closest_differences(incumbent, told)
        if differences is None:
            return None
        slopes, reach = _outlook(differences, self.error_level)

        def hopeless(partial: Evaluation) -> bool:
            margin, place = self.margin(partial, incumbent), _place(partial, incumbent)
            return math.isinf(margin) or (
                margin > 0 and bool(slopes[place] * margin > reach[place])
            )

        return hopeless

    @staticmethod
    def margin(partial: Evaluation, incumbent: Evaluation) -> float:
        """Returns nats per token by which `partial` is worse than `incumbent` on the documents both
        have, or on the last rung of the ladder that `partial` stands on; NaN: ∞.
        """
        num_scored = len(partial.nll_sums)
        if not num_scored:
            on_rung = partial.rungs[-1] - incumbent.rungs[len(partial.rungs) - 1]
            return on_rung if math.isfinite(on_rung) else math.inf
        difference = math.fsum(partial.nll_sums) - math.fsum(incumbent.nll_sums[:num_scored])
        return difference / partial.tokens if math.isfinite(difference) else math.inf


def span_of_rule(round_start: int, round_end: int, num_done: int) -> tuple[int, int]:
    """Returns from which evaluation of a search to which one rule holds, of the round that
    `num_done` falls into."""
    if not round_start < _FIRST_RULE < round_end:
        return round_start, round_end
    return (round_start, _FIRST_RULE) if num_done < _FIRST_RULE else (_FIRST_RULE, round_end)


def best_usable(told: Iterable[Evaluation]) -> Evaluation | None:
    """Returns the completed evaluation of lowest finite loss, of equals the first."""
    return min((each for each in told if each.usable), key=lambda each: each.loss, default=None)


def closest_differences(incumbent: Evaluation, completed: Iterable[Evaluation]) -> Matrix | None:
    """Returns [candidates, places]: by how many nats per token each of the `completed` evaluations
    closest to `incumbent` exceeds it on each rung of its ladder, then over the first document, the
    first two, all; None where there are fewer than eight, or a single place.
    """
    ours = _means(incumbent)
    rows = [
        _means(each) - ours
        for each in completed
        if each.usable
        and each is not incumbent
        and each.token_counts == incumbent.token_counts
        and len(each.rungs) == len(incumbent.rungs)
    ]
    if len(rows) < _FEWEST or len(ours) < 2:
        return None
    rows.sort(key=lambda row: abs(float(row[-1])))
    return np.array(rows[: max(_FEWEST, round(_CLOSEST * len(rows)))])


def _means(whole: Evaluation) -> Vector:
    """Nats per token on each rung, then over the first m documents."""
    over_documents = np.cumsum(np.array(whole.nll_sums)) / np.cumsum(
        np.array(whole.token_counts, dtype=np.float64)
    )
    return np.append(np.array(whole.rungs, dtype=np.float64), over_documents)


def _place(partial: Evaluation, incumbent: Evaluation) -> int:
    """Of what has been scored last of `partial` among `_means`; one without a ladder is judged on
    documents alone."""
    return (
        len(incumbent.rungs) + len(partial.nll_sums) - 1
        if partial.nll_sums
        else len(partial.rungs) - 1
    )


def _outlook(differences: Matrix, error_level: float) -> tuple[Vector, Vector]:
    """Per number of documents m: the slope, through the incumbent at 0, of the difference over all
    documents by that over the first m; and how far below that line the next candidate may end,
    Student's t times the spread about it. A line with an intercept would expect of whatever is
    better than all others that it gets worse as they do.
    """
    whole = differences[:, -1:]
    squares = (differences**2).sum(axis=0)
    products = (differences * whole).sum(axis=0)
    slopes = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    freedom = len(differences) - 1
    spread = np.sqrt(((whole - slopes * differences) ** 2).sum(axis=0) / freedom)
    return slopes, _student_quantile(1 - error_level, freedom) * spread


def _student_quantile(probability: float, freedom: int) -> float:
    """Student's t from the normal quantile (Abramowitz & Stegun 26.7.5, to 1/ν³): within 0.5 % from
    ν = 7 on at 1 %."""
    z, v = NormalDist().inv_cdf(probability), freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3
