"""Stopping candidates early: document by document, paired with the incumbent's losses on the same documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megatron_longrope.config import StrictConfig
from megatron_longrope.search.types import Evaluation, Judge

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
_CLOSEST = 0.15
"""Share of the completed evaluations that are learned from: those far from the incumbent are not the hard decisions."""
_FEWEST = 8
"""Completed evaluations without which nothing is stopped: the spread would be a guess."""
_FIRST_RULE = 12
"""Evaluations of a search after which its first rule is made, inside a round if need be: first rounds are large."""


class EarlyStopping(StrictConfig):
    """When a candidate is hopeless: its loss over all documents would exceed the incumbent's even if the documents

    still to come were as kind to it as `error_level` leaves possible. How the mean difference to the incumbent goes
    on from the first m documents to all of them is learned from the completed candidates closest to it: documents
    differ in how much they mind a change of factors, which is the same for all candidates and no surprise.
    """

    error_level: float = Field(default=0.01, gt=0, lt=0.5)
    """One-sided, of each single decision."""

    def judge(self, told: Sequence[Evaluation]) -> Judge | None:
        """Returns the rule learned from what was `told`, against the best of it; None while that is too little."""
        incumbent = best_usable(told)
        if incumbent is None:
            return None
        ahead = differences_ahead(incumbent, told)
        if ahead is None:
            return None
        kindest = _kindest(ahead, self.error_level)

        def hopeless(partial: Evaluation) -> bool:
            return bool(self.margin(partial, incumbent) + kindest[len(partial.nll_sums) - 1] > 0)

        return hopeless

    @staticmethod
    def margin(partial: Evaluation, incumbent: Evaluation) -> float:
        """Returns nats per token by which `partial` is worse than `incumbent` on the documents both have; NaN: ∞."""
        num_scored = len(partial.nll_sums)
        difference = math.fsum(partial.nll_sums) - math.fsum(incumbent.nll_sums[:num_scored])
        return difference / partial.tokens if math.isfinite(difference) else math.inf


def span_of_rule(round_start: int, round_end: int, num_done: int) -> tuple[int, int]:
    """Returns from which evaluation of a search to which one rule holds, of the round that `num_done` falls into."""
    if not round_start < _FIRST_RULE < round_end:
        return round_start, round_end
    return (round_start, _FIRST_RULE) if num_done < _FIRST_RULE else (_FIRST_RULE, round_end)


def best_usable(told: Iterable[Evaluation]) -> Evaluation | None:
    """Returns the completed evaluation of lowest finite loss, of equals the first."""
    return min((each for each in told if each.usable), key=lambda each: each.loss, default=None)


def differences_ahead(incumbent: Evaluation, completed: Iterable[Evaluation]) -> Matrix | None:
    """Returns [candidates, documents]: by how many nats per token the difference to `incumbent` over all documents

    exceeded the one over the first m, of the `completed` evaluations closest to it; None where there are fewer than
    eight, or a single document.
    """
    counts = np.array(incumbent.token_counts, dtype=np.float64)
    ours = np.array(incumbent.nll_sums)
    rows = [
        np.array(each.nll_sums) - ours
        for each in completed
        if each.usable and each is not incumbent and each.token_counts == incumbent.token_counts
    ]
    if len(rows) < _FEWEST or len(counts) < 2:
        return None
    rows.sort(key=lambda row: abs(float(row.sum())))
    closest = np.array(rows[: max(_FEWEST, round(_CLOSEST * len(rows)))])
    so_far = np.cumsum(closest, axis=1) / np.cumsum(counts)
    return np.asarray(so_far[:, -1:] - so_far)


def _kindest(ahead: Matrix, error_level: float) -> Vector:
    """The lower end, per number of documents, of what the next difference ahead may be: mean − t·s·√(1 + 1/n)."""
    num = len(ahead)
    reach = _student_quantile(1 - error_level, num - 1) * math.sqrt(1 + 1 / num)
    return np.asarray(ahead.mean(axis=0) - reach * ahead.std(axis=0, ddof=1))


def _student_quantile(probability: float, freedom: int) -> float:
    """Student's t from the normal quantile (Abramowitz & Stegun 26.7.5, to 1/ν³): within 0.5 % from ν = 7 on at 1 %."""
    z, v = NormalDist().inv_cdf(probability), freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3
