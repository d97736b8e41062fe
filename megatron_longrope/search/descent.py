"""Gradient descent of the loss in λ and t together, with λ non-decreasing by construction.

The variables are roots r and log t, where log λ_i = log λ_min + Σ_{k≤i} r_k²: any r gives a
non-decreasing λ. Adam (arXiv 1412.6980) moves them. A pair whose λ hardly exceeds its neighbour's
moves slowly, because its derivative has the factor 2·r_k. That damps the high frequencies, where
the loss oscillates with λ (a turn more or less at the far end of the context), and lets the pairs
near the pretrained window find their steps. Moving log λ itself diverged in our trials.

The gradient on one document costs a fraction of that on all of them, and following one document
after the other gets further: many cheap steps leave the ripples in which a few exact ones stop
(docs/log.md). The points reached are scored on all documents a few times on the way.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megatron_longrope.artifacts.evaluations import Candidate, Evaluation
from megatron_longrope.config import StrictConfig
from megatron_longrope.search.space import SearchSpace

Vector = NDArray[np.float64]
Point = Literal["step", "check"]
"""Kind of a point of a descent.

A step is evaluated with its gradient, which leads to the next point. A check is evaluated on all
documents, so that it can be compared with other candidates.
"""
_SMALLEST_ROOT = 0.01
"""The root of a pair whose λ equals its neighbour's in the seed: r_k = 0 would never move."""
_EPSILON = 1e-12
"""Adam's ε."""


class DescentSettings(StrictConfig):
    """Settings of the descent; both rates rise at first, then fall to 0 along half a cosine."""

    passes: int = Field(default=24, ge=1)
    """Passes over the documents. One costs about three evaluations: a forward and a backward pass
    over each document."""
    documents_per_step: int | None = Field(default=1, ge=1)
    """Documents that the gradient of a step is taken on, or `null` for all of them. Every document
    has its turn, in a random order. The documents of a step are spread over data-parallel groups,
    so that with many groups a value above 1 keeps them busy."""
    checks: int = Field(default=4, ge=1)
    """Evaluations on all documents, over the second half of the descent with the last at its end.
    Where every step is evaluated on all documents, only the last is made."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the rates rise. Adam's first steps have full length however
    small the gradient is; without warm-up they left the valley that YaRN starts in."""
    rate: float = Field(default=0.02, gt=0)
    """Learning rate of the roots r."""
    temperature_rate: float = Field(default=0.005, ge=0)
    """Learning rate of log t."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Adam's β₁."""
    scaling: float = Field(default=0.98, ge=0, lt=1)
    """Adam's β₂."""

    def num_steps(self, num_documents: int) -> int:
        """Returns the number of steps of the schedule of rates.

        The last of them would have rate 0 and is not taken.
        """
        return max(2, self.passes * self._steps_per_pass(num_documents))

    def plan(self, num_documents: int) -> tuple[Point, ...]:
        """Returns the kind of each point of a descent in order; the last point is a check."""
        steps = self.num_steps(num_documents) - 1
        checks = {steps}
        # a check after ½·(1 + k/checks) of the schedule for k = 1 … checks; k = checks is its end
        if self.sample(0, num_documents, seed=0) is not None:
            halfway = (steps + 1) / 2
            checks |= {
                math.ceil(halfway * (1 + check / self.checks)) for check in range(1, self.checks)
            }
        points: list[Point] = []
        for step in range(1, steps + 1):
            points += ["step", "check"] if step in checks else ["step"]
        return tuple(points)

    def sample(self, step: int, num_documents: int, seed: int) -> tuple[int, ...] | None:
        """Returns the documents of step number `step` (from 0 on), None for all documents.

        Each pass shuffles the documents anew. Where the number of documents is no multiple of
        `documents_per_step`, the last ones of the shuffled order are left out of that pass.
        """
        size = self.documents_per_step
        if size is None or size >= num_documents:
            return None
        number, place = divmod(step, self._steps_per_pass(num_documents))
        order = np.random.default_rng([seed, number]).permutation(num_documents)
        drawn = order[place * size : (place + 1) * size]
        return tuple(sorted(int(document) for document in drawn))

    def _steps_per_pass(self, num_documents: int) -> int:
        return num_documents // min(self.documents_per_step or num_documents, num_documents)


class Descent:
    """One descent from a starting point.

    The caller evaluates `candidate` with its gradient and hands the result to `advance`, which
    moves to the next candidate. n̂ stays as in the start.
    """

    def __init__(
        self, space: SearchSpace, start: Candidate, settings: DescentSettings, num_steps: int
    ) -> None:
        self.space, self.settings, self.start_tokens, self.num_steps = (
            space,
            settings,
            start.start_tokens,
            num_steps,
        )
        self._lower, self._upper = space.bounds
        self._floor = space.coordinate_range[0]
        logs = np.maximum.accumulate(space.coordinates(np.array(start.rescale)))
        # r_i = √(log λ_i − log λ_{i−1}), with log λ_{−1} = log λ_min
        roots = np.sqrt(np.maximum(np.diff(logs, prepend=self._floor), _SMALLEST_ROOT**2))
        self._point = np.append(roots, math.log(start.attention_factor))  # r, then log t
        self._mean, self._square = np.zeros_like(self._point), np.zeros_like(self._point)
        self._sound: Vector | None = None  # the last point with a finite loss and gradient
        self._damping = 1.0  # halved with every retreat
        self.step = 0

    @property
    def candidate(self) -> Candidate:
        """The present point as a candidate, clipped to the bounds of the space."""
        rescale = self.space.shape(np.clip(self._unclipped(), self._lower, self._upper))
        return Candidate(tuple(rescale), self.start_tokens, self._attention_factor())

    def advance(self, evaluation: Evaluation) -> bool:
        """Takes one step of Adam from the result of `candidate`; returns False to end the descent.

        From a point without a finite loss and gradient it returns to the last point that had them
        and halves the rates; the descent ends where there is no such point.
        """
        if not math.isfinite(evaluation.loss) or evaluation.gradient is None:
            return self._retreat()
        gradient = self._gradient(evaluation)
        if not np.all(np.isfinite(gradient)):
            return self._retreat()
        self._sound = self._point.copy()
        self.step += 1
        b1, b2 = self.settings.momentum, self.settings.scaling
        # Adam, Algorithm 1: moments m and v, both corrected for their start at 0; then
        # x ← x − rate · m̂ / (√v̂ + ε)
        self._mean = b1 * self._mean + (1 - b1) * gradient
        self._square = b2 * self._square + (1 - b2) * gradient**2
        mean = self._mean / (1 - b1**self.step)
        square = self._square / (1 - b2**self.step)
        direction = mean / (np.sqrt(square) + _EPSILON)
        self._point = self._point - self._rates() * direction
        # t is clipped at once; λ is clipped only in `candidate`, because r_k moves all later pairs
        lowest, highest = math.log(self._coolest), math.log(self._sharpest)
        self._point[-1] = min(max(self._point[-1], lowest), highest)
        return True

    @property
    def _coolest(self) -> float:
        return self.space.attention_factors[0]

    @property
    def _sharpest(self) -> float:
        return self.space.attention_factors[-1]

    def _rates(self) -> Vector:
        """Returns the learning rate of each variable at the present step, r first, log t last."""
        # half a cosine from 1 to 0 over the schedule, times a linear warm-up
        left = self._damping * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.num_steps)))
        left *= min(1.0, self.step / max(1.0, self.settings.warmup * self.num_steps))
        rates = np.full(len(self._point), left * self.settings.rate)
        rates[-1] = left * self.settings.temperature_rate
        return rates

    def _unclipped(self) -> Vector:
        """Returns λ_i with log λ_i = log λ_min + Σ_{k≤i} r_k², [num_pairs].

        An open space has coordinates of its own in the place of log λ.
        """
        return self.space.rescale_at(self._floor + np.cumsum(self._point[:-1] ** 2))

    def _attention_factor(self) -> float:
        return min(max(math.exp(self._point[-1]), self._coolest), self._sharpest)

    def _gradient(self, evaluation: Evaluation) -> Vector:
        """Returns the derivatives of the loss by r and by log t, [num_pairs + 1].

        Where a λ is clipped to a bound, a derivative that would move it further out counts as 0.
        """
        assert evaluation.gradient is not None
        rescale = self._unclipped()
        shaped = self.space.shape(np.clip(rescale, self._lower, self._upper))
        # pull_back adds the share of pairs that follow another
        by_log = self.space.pull_back(evaluation.gradient.rescale, shaped)
        above, below = rescale > self._upper, rescale < self._lower
        outward = (above & (by_log < 0)) | (below & (by_log > 0))  # a descent step goes against it
        by_log = np.where(outward, 0.0, by_log)
        # r_k is in log λ_i of every i ≥ k:  ∂loss/∂r_k = 2·r_k · Σ_{i≥k} ∂loss/∂log λ_i
        by_root = 2 * self._point[:-1] * np.cumsum(by_log[::-1])[::-1]
        # ∂loss/∂log t = t · ∂loss/∂t
        return np.append(by_root, evaluation.gradient.attention_factor * self._attention_factor())

    def _retreat(self) -> bool:
        """Goes back to the last sound point with half the rates; returns False without one."""
        if self._sound is None:
            return False
        self._point = self._sound.copy()
        self._mean, self._square = np.zeros_like(self._point), np.zeros_like(self._point)
        self._damping /= 2
        self.step += 1
        return True
