"""Following the gradient of the loss in λ and t together, with λ non-decreasing by construction.

log λ_i = log λ_min + Σ_{k≤i} θ_k², and Adam moves θ and log t. A pair whose λ hardly exceeds its neighbour's moves
slowly: that damps the high frequencies, where the loss oscillates with λ (a turn more or less at the far end of the
context), and lets the pairs near the pretrained window find their steps. Moving log λ itself diverged in our trials.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megatron_longrope.config import StrictConfig
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import Candidate, Evaluation

Vector = NDArray[np.float64]
_SMALLEST_ROOT = 0.01
"""Where a seed's λ stays level: θ = 0 would have no gradient and never move."""
_EPSILON = 1e-12


class DescentSettings(StrictConfig):
    """Adam's steps; both rates rise over the first ones, then fall to 0 along half a cosine."""

    steps: int = Field(default=40, ge=1)
    warmup_steps: int = Field(default=5, ge=1)
    """Adam's first steps have its full length whatever the gradient: from YaRN they jumped out of its valley."""
    rate: float = Field(default=0.03, gt=0)
    """Of θ per step."""
    temperature_rate: float = Field(default=0.01, ge=0)
    """Of log t per step."""
    momentum: float = Field(default=0.8, ge=0, lt=1)
    scaling: float = Field(default=0.95, ge=0, lt=1)
    """Adam's β₂."""


class Descent:
    """One descent from a starting point: `candidate` is to be evaluated with its gradient, then told to `advance`."""

    def __init__(self, space: SearchSpace, start: Candidate, settings: DescentSettings) -> None:
        self.space, self.settings, self.start_tokens = space, settings, start.start_tokens
        self._lower, self._upper = space.bounds
        self._floor = math.log(self._lower[0])
        logs = np.maximum.accumulate(np.log(np.array(start.rescale)))
        roots = np.sqrt(np.maximum(np.diff(logs, prepend=self._floor), _SMALLEST_ROOT**2))
        self._point = np.append(roots, math.log(start.attention_factor))
        self._mean, self._square = np.zeros_like(self._point), np.zeros_like(self._point)
        self._best: tuple[float, Vector] | None = None
        self._damping = 1.0
        self.step = 0

    @property
    def candidate(self) -> Candidate:
        """The present point, within the space's bounds."""
        rescale = self.space.shape(np.clip(np.exp(self._logs()), self._lower, self._upper))
        return Candidate(tuple(rescale), self.start_tokens, self._attention_factor())

    def advance(self, evaluation: Evaluation) -> bool:
        """Takes one step; from an unusable point back to the best one, at half the rates. False: there is none."""
        if not evaluation.usable or evaluation.gradient is None:
            return self._retreat()
        if self._best is None or evaluation.loss < self._best[0]:
            self._best = evaluation.loss, self._point.copy()
        gradient = self._gradient(evaluation)
        if not np.all(np.isfinite(gradient)):
            return self._retreat()
        self.step += 1
        b1, b2 = self.settings.momentum, self.settings.scaling
        self._mean = b1 * self._mean + (1 - b1) * gradient
        self._square = b2 * self._square + (1 - b2) * gradient**2
        direction = (self._mean / (1 - b1**self.step)) / (np.sqrt(self._square / (1 - b2**self.step)) + _EPSILON)
        self._point = self._point - self._rates() * direction
        self._point[-1] = min(max(self._point[-1], math.log(self._coolest)), math.log(self._sharpest))
        return True

    @property
    def _coolest(self) -> float:
        return self.space.attention_factors[0]

    @property
    def _sharpest(self) -> float:
        return self.space.attention_factors[-1]

    def _rates(self) -> Vector:
        left = self._damping * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.settings.steps)))
        left *= min(1.0, self.step / self.settings.warmup_steps)
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
        outward = ((rescale > self._upper) & (by_log < 0)) | ((rescale < self._lower) & (by_log > 0))
        by_log = np.where(outward, 0.0, by_log)
        by_root = 2 * self._point[:-1] * np.cumsum(by_log[::-1])[::-1]
        return np.append(by_root, evaluation.gradient.attention_factor * self._attention_factor())

    def _retreat(self) -> bool:
        if self._best is None:
            return False
        self._point = self._best[1].copy()
        self._mean, self._square = np.zeros_like(self._point), np.zeros_like(self._point)
        self._damping /= 2
        self.step += 1
        return True
