"""Early stopping: a candidate that is hopeless against the incumbent is not scored to the end.

Documents are scored one after the other, and the losses so far are compared with the incumbent's on
the same documents. A ladder of shorter contexts may come before the documents: it is cheap to
score, and a candidate that is hopeless there is often hopeless at length.

The rule is a linear prediction. Of the completed candidates let d_m be the mean difference to the
incumbent over the first m documents, in nats per token, and D that over all of them. A regression
of D on d_m through the origin, D ≈ b_m·d_m, has the slope b_m = Σ d_m·D / Σ d_m² and the residual
standard deviation s_m = √(Σ (D − b_m·d_m)² / (n − 1)) over n candidates. A candidate with d_m > 0
is stopped where b_m·d_m > t_{1−α,n−1}·s_m: where Student's quantile makes D ≤ 0 less likely than α.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from megatron_longrope.artifacts.evaluations import Evaluation
from megatron_longrope.config import Length, StrictConfig
from megatron_longrope.search.types import Judge

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Means = Callable[[Evaluation], Vector]
"""Returns nats per token at each place where scoring may stop, and over all documents at last."""
_CLOSEST = 0.15
"""Share of the completed evaluations that the rule is learned from, the closest to the incumbent.

Candidates far from it behave differently, and deciding about them is easy anyway.
"""
_FEWEST = 8
"""Fewest completed evaluations to learn from: with fewer the spread would be a guess."""
_FIRST_RULE = 12
"""Number of evaluations after which the first rule is made, even inside a large first round."""


class EarlyStopping(StrictConfig):
    """Settings of early stopping, and the rules that follow from completed evaluations.

    A candidate is hopeless where it is worse than the incumbent so far, and would still be worse
    over all documents if the remaining ones favoured it as much as `error_level` leaves plausible.
    The module's docstring has the equations. The slopes b_m are learned because documents differ in
    how much a change of factors affects them.
    """

    error_level: float = Field(default=0.01, ge=1e-4, lt=0.5)
    """One-sided error level α of each single decision."""
    ladder: tuple[Length, ...] = ()
    """Shorter lengths, ascending, at which a candidate is scored first, on each document's first
    tokens. The losses there decide only whether it is scored at full length."""

    @field_validator("ladder")
    @classmethod
    def _ascending(cls, ladder: tuple[int, ...]) -> tuple[int, ...]:
        if list(ladder) != sorted(set(ladder)) or any(length < 2 for length in ladder):
            raise ValueError(f"ladder: lengths of 2 tokens or more that ascend, got {list(ladder)}")
        return ladder

    def judge(self, told: Sequence[Evaluation]) -> Judge | None:
        """Returns the stopping rule learned from the evaluations `told`, against the best of them.

        On the ladder candidates are compared with the best one that was scored there: steps of a
        descent are not, and one of them may be the best. It is no better than the best, so whoever
        is hopeless against it is hopeless. Returns None while there are too few to learn from.
        """
        on_ladder = [each for each in told if each.rungs and all(map(math.isfinite, each.rungs))]
        of_documents = _Rule.learned(told, _over_documents, self.error_level)
        of_rungs = _Rule.learned(on_ladder, _on_rungs, self.error_level)
        if of_documents is None and of_rungs is None:
            return None

        def hopeless(partial: Evaluation) -> bool:
            rule, scored = of_documents, _over_documents(partial)
            if not partial.nll_sums:
                rule, scored = of_rungs, np.array(partial.rungs)
            return not math.isfinite(scored[-1]) or (rule is not None and rule.gives_up(scored))

        return hopeless


def span_of_rule(round_start: int, round_end: int, num_done: int) -> tuple[int, int]:
    """Returns the numbers of the first evaluation under the present rule and of the first after it.

    A rule holds for a whole round, so that a search does not depend on how many candidates are
    evaluated at a time. Only a round that contains the first point with enough to learn from is
    split there. `round_start` and `round_end` are those of the round that number `num_done` is in.
    """
    if not round_start < _FIRST_RULE < round_end:
        return round_start, round_end
    return (round_start, _FIRST_RULE) if num_done < _FIRST_RULE else (_FIRST_RULE, round_end)


def best_usable(told: Iterable[Evaluation]) -> Evaluation | None:
    """Returns the first completed evaluation of lowest finite loss; None where there is none."""
    return min((each for each in told if each.usable), key=lambda each: each.loss, default=None)


def closest_differences(
    incumbent: Evaluation, completed: Iterable[Evaluation], means: Means
) -> Matrix | None:
    """Returns the differences d_m of the evaluations closest to `incumbent`, [candidates, places].

    `means` says what the places are. A difference is in nats per token, positive where the
    incumbent is better. Returns None where fewer than eight evaluations can be compared, or where
    there is a single place.
    """
    ours = means(incumbent)
    rows = [
        means(each) - ours
        for each in completed
        if each.usable and each is not incumbent and each.token_counts == incumbent.token_counts
    ]
    if len(rows) < _FEWEST or len(ours) < 2:
        return None
    rows.sort(key=lambda row: abs(float(row[-1])))
    return np.array(rows[: max(_FEWEST, round(_CLOSEST * len(rows)))])


def _over_documents(scored: Evaluation) -> Vector:
    """Returns nats per token over the first m documents for m = 1, 2, … to all that are scored."""
    token_counts = np.array(scored.token_counts, dtype=np.float64)
    return np.cumsum(np.array(scored.nll_sums)) / np.cumsum(token_counts)


def _on_rungs(whole: Evaluation) -> Vector:
    """Returns nats per token on each rung, then over all documents."""
    return np.append(np.array(whole.rungs, dtype=np.float64), _over_documents(whole)[-1])


@dataclass(frozen=True)
class _Rule:
    """A rule for the places of one kind: the first m documents, or the rungs of the ladder."""

    ours: Vector
    """Nats per token of the incumbent at each place."""
    slopes: Vector
    """b_m of each place."""
    reach: Vector
    """t_{1−α,n−1}·s_m of each place."""

    @classmethod
    def learned(cls, told: Sequence[Evaluation], means: Means, error_level: float) -> _Rule | None:
        """Returns the rule against the best of `told`; None where it cannot be learned."""
        incumbent = best_usable(told)
        if incumbent is None:
            return None
        differences = closest_differences(incumbent, told, means)
        if differences is None:
            return None
        return cls(means(incumbent), *_outlook(differences, error_level))

    def gives_up(self, scored: Vector) -> bool:
        """Returns whether a candidate is hopeless, from its nats per token at its places so far."""
        place = len(scored) - 1
        margin = float(scored[place] - self.ours[place])
        # d_m > 0 and b_m·d_m > t·s_m
        return margin > 0 and bool(self.slopes[place] * margin > self.reach[place])


def _outlook(differences: Matrix, error_level: float) -> tuple[Vector, Vector]:
    """Returns the slope b_m and the reach t_{1−α,n−1}·s_m of every place, each [places].

    The regression goes through the origin, which is the incumbent itself. A line with an intercept
    would predict that a candidate better than all others so far gets worse as the others did.
    """
    whole = differences[:, -1:]  # D of every candidate, [candidates, 1]
    squares = (differences**2).sum(axis=0)
    products = (differences * whole).sum(axis=0)
    # b_m = Σ d_m·D / Σ d_m²; 0 where all d_m are 0, which predicts nothing and stops nobody
    slopes = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    freedom = len(differences) - 1  # one parameter, the slope, was estimated
    spread = np.sqrt(((whole - slopes * differences) ** 2).sum(axis=0) / freedom)
    return slopes, _student_quantile(1 - error_level, freedom) * spread


def _student_quantile(probability: float, freedom: int) -> float:
    """Returns a quantile of Student's t distribution with `freedom` ν degrees of freedom.

    It is the expansion about the normal quantile, Abramowitz & Stegun 26.7.5, to the order of 1/ν³:
    within 0.5 % from ν = 7 on at the level 1 %.
    """
    z, v = NormalDist().inv_cdf(probability), freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3
