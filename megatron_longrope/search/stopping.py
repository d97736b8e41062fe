"""Stopping candidates early: document by document, paired with the incumbent's losses on the same documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from pydantic import Field

from megatron_longrope.config import StrictConfig
from megatron_longrope.search.types import Evaluation, Judge

_CLOSEST = 0.25
"""Share of the completed evaluations whose spread counts: those far from the incumbent are not the hard decisions."""
_FEWEST = 8
"""Completed evaluations without which nothing is stopped: the spread would be a guess."""


class EarlyStopping(StrictConfig):
    """When a candidate is hopeless: its loss over all documents would exceed the incumbent's even if the documents

    still to come were as kind to it as `error_level` leaves possible. Differences d to the incumbent, per document,
    vary with a standard deviation σ taken from the completed candidates closest to it; after m of M documents the
    mean over all M differs from that over m by σ·√(1/m − 1/M).
    """

    error_level: float = Field(default=0.01, gt=0, lt=0.5)
    """One-sided, of each single decision."""

    def judge(self, incumbent: Evaluation | None, completed: Iterable[Evaluation]) -> Judge | None:
        """Returns the rule for one round, fixed when the round is drawn; None while there is too little to go by."""
        if incumbent is None:
            return None
        spread = difference_spread(incumbent, completed)
        if spread is None:
            return None
        quantile = NormalDist().inv_cdf(1 - self.error_level)

        def hopeless(partial: Evaluation) -> bool:
            return self.margin(partial, incumbent) > quantile * spread * _uncertainty(partial, incumbent)

        return hopeless

    @staticmethod
    def margin(partial: Evaluation, incumbent: Evaluation) -> float:
        """Returns nats per token by which `partial` is worse than `incumbent` on the documents both have; NaN: ∞."""
        num_scored = len(partial.nll_sums)
        difference = math.fsum(partial.nll_sums) - math.fsum(incumbent.nll_sums[:num_scored])
        return difference / partial.tokens if math.isfinite(difference) else math.inf


def difference_spread(incumbent: Evaluation, completed: Iterable[Evaluation]) -> float | None:
    """Returns σ, the standard deviation over documents of per-token differences to `incumbent`, in nats.

    Pooled over the quarter of `completed` evaluations closest to it; None where there are fewer than eight, or a
    single document.
    """
    counts = np.array(incumbent.token_counts, dtype=np.float64)
    ours = np.array(incumbent.nll_sums) / counts
    rows = [
        np.array(each.nll_sums) / counts - ours
        for each in completed
        if each.usable and each is not incumbent and each.token_counts == incumbent.token_counts
    ]
    if len(rows) < _FEWEST or len(counts) < 2:
        return None
    rows.sort(key=lambda row: abs(float(row @ counts)))
    closest = np.array(rows[: max(_FEWEST, round(_CLOSEST * len(rows)))])
    return float(np.sqrt(np.mean(np.var(closest, axis=1, ddof=1))))


def _uncertainty(partial: Evaluation, incumbent: Evaluation) -> float:
    """√(1/m − 1/M), where documents of different sizes count as (Σn)²/Σn² equal ones."""
    return math.sqrt(max(0.0, 1 / _effective(partial.token_counts) - 1 / _effective(incumbent.token_counts)))


def _effective(counts: Sequence[int]) -> float:
    return sum(counts) ** 2 / sum(count**2 for count in counts)
