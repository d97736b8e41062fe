"""Following the gradient of the loss in λ and t together, with λ non-decreasing by construction.

log λ_i = log λ_min + Σ_{k≤i} θ_k², and Adam moves θ and log t. A pair whose λ hardly exceeds its
neighbour's moves slowly: that damps the high frequencies, where the loss oscillates with λ (a turn
more or less at the far end of the context), and lets the pairs near the pretrained window find
their steps. Moving log λ itself diverged in our trials.

The gradient of one document costs a fraction of all documents', and following each in turn gets
further: many cheap steps do not stop in the ripples in which a few exact ones do (docs/log.md).
What they lead to is scored on all documents at a few points of the way.
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
"""Of a descent: where it is scored with its gradient to go on from, or on all documents to be
compared."""
_SMALLEST_ROOT = 0.01
"""Where a seed's λ stays level: θ = 0 would have no gradient and never move."""
_EPSILON = 1e-12


class DescentSettings(StrictConfig):
    """Adam's steps; both rates rise over the first ones, then fall to 0 along half a cosine."""

    passes: int = Field(default=24, ge=1)
    """Over the documents: one costs about three evaluations, a forward and a backward pass over
    each document."""
    documents_per_step: int | None = Field(default=1, ge=1)
    """The gradient of a step is that of so many documents, all in turn in a random order; `null`:
    of all of them. They are spread over data-parallel groups: on many, more than one a step keeps
    them busy."""
    checks: int = Field(default=4, ge=1)
    """Evaluations on all documents over the second half of the way, the last one at its end. Where
    steps are on all documents themselves only that one is made."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps. Adam's first ones have its full length whatever the gradient: from YaRN
    they jumped out of its valley."""
    rate: float = Field(default=0.02, gt=0)
    """Of θ per step."""
    temperature_rate: float = Field(default=0.005, ge=0)
    """Of log t per step."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    scaling: float = Field(default=0.98, ge=0, lt=1)
    """Adam's β₂."""

    def num_steps(self, num_documents: int) -> int:
        """Returns the steps over which the rates rise and fall: the last one, at rate 0, is not
        taken."""
        return max(2, self.passes * self._steps_per_pass(num_documents))

    def plan(self, num_documents: int) -> tuple[Point, ...]:
        """Returns what each point of a descent is: steps, and among them checks, the end for
        last."""
        steps = self.num_steps(num_documents) - 1
        checks = {steps}
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
        """Returns the documents of a step (from 0 on); None: all. Each pass has an order of its
        own, and where steps do not use it up, the last ones of that order wait for another pass.
        """
        size = self.documents_per_step
        if size is None or size >= num_documents:
            return None
        number, place = divmod(step, self._steps_per_pass(num_documents))
        order = np.random.default_rng([seed, number]).permutation(num_documents)
        return tuple(sorted(int(document) for document in order[place * size : (place + 1) * size]))

    def _steps_per_pass(self, num_documents: int) -> int:
        return num_documents // min(self.documents_per_step or num_documents, num_documents)


class Descent:
    """One descent from a starting point: `candidate` is to be evaluated with its gradient, then
    told to `advance`."""

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
        self._floor = math.log(self._lower[0])
        logs = np.maximum.accumulate(np.log(np.array(start.rescale)))
        roots = np.sqrt(np.maximum(np.diff(logs, prepend=self._floor), _SMALLEST_ROOT**2))
        self._point = np.append(roots, math.log(start.attention_factor))
        self._mean, self._square = np.zeros_like(self._point), np.zeros_like(self._point)
        self._sound: Vector | None = None
        self._damping = 1.0
        self.step = 0

    @property
    def candidate(self) -> Candidate:
        """The present point, within the space's bounds."""
        rescale = self.space.shape(np.clip(np.exp(self._logs()), self._lower, self._upper))
        return Candidate(tuple(rescale), self.start_tokens, self._attention_factor())

    def advance(self, evaluation: Evaluation) -> bool:
        """Takes one step; from a point without a loss back to the last that had one, at half the
        rates. False: none had.
        """
        if not math.isfinite(evaluation.loss) or evaluation.gradient is None:
            return self._retreat()
        gradient = self._gradient(evaluation)
        if not np.all(np.isfinite(gradient)):
            return self._retreat()
        self._sound = self._point.copy()
        self.step += 1
        b1, b2 = self.settings.momentum, self.settings.scaling
        self._mean = b1 * self._mean + (1 - b1) * gradient
        self._square = b2 * self._square + (1 - b2) * gradient**2
        direction = (self._mean / (1 - b1**self.step)) / (
            np.sqrt(self._square / (1 - b2**self.step)) + _EPSILON
        )
        self._point = self._point - self._rates() * direction
        self._point[-1] = min(
            max(self._point[-1], math.log(self._coolest)), math.log(self._sharpest)
        )
        return True

    @property
    def _coolest(self) -> float:
        return self.space.attention_factors[0]

    @property
    def _sharpest(self) -> float:
        return self.space.attention_factors[-1]

    def _rates(self) -> Vector:
        left = self._damping * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.num_steps)))
        left *= min(1.0, self.step / max(1.0, self.settings.warmup * self.num_steps))
        rates = np.full(len(self._point), left * self.settings.rate)
        rates[-1] = left * self.settings.temperature_rate
        return rates

    def _logs(self) -> Vector:
        return self._floor + np.cumsum(self._point[:-1] ** 2)

    def _attention_factor(self) -> float:
        return min(max(math.exp(self._point[-1]), self._coolest), self._sharpest)

    def _gradient(self, evaluation: Evaluation) -> Vector:
        """By θ and log t; a λ held at its bound is not pushed further out."""
        assert evaluation.gradient is not None
        rescale = np.exp(self._logs())
        shaped = self.space.shape(np.clip(rescale, self._lower, self._upper))
        by_log = self.space.pull_back(evaluation.gradient.rescale * shaped)
        outward = ((rescale > self._upper) & (by_log < 0)) | (
            (rescale < self._lower) & (by_log > 0)
        )
        by_log = np.where(outward, 0.0, by_log)
        by_root = 2 * self._point[:-1] * np.cumsum(by_log[::-1])[::-1]
        return np.append(by_root, evaluation.gradient.attention_factor * self._attention_factor())

    def _retreat(self) -> bool:
        if self._sound is None:
            return False
        self._point = self._sound.copy()
        self._mean, self._square = np.zeros_like(self._point), np.zeros_like(self._point)
        self._damping /= 2
        self.step += 1
        return True
