"""CMA-ES on a curve: log λ over the pair index as a monotone polygon through a few knots, and the
temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray
from pydantic import Field

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.config import StrictConfig
from megatron_longrope.search.rounds import Proposal, RoundSearcher
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import SearchTask

Vector = NDArray[np.float64]


class CmaSettings(StrictConfig):
    """Sizes of the search; σ is in units of the whole range of log λ and of t."""

    knots: int = Field(default=8, ge=2)
    population: int = Field(default=10, ge=3)
    iterations: int = Field(default=12, ge=1)
    sigma: float = Field(default=0.12, gt=0)


class CmaSearch(RoundSearcher[CmaSettings]):
    """The seeds, then generations of CMA-ES around the best of them; n̂ stays the best seed's.

    search = CmaSearch(space, CmaSettings(knots=8), [pi, yarn], 1, task)
    """

    name = "cma"
    summary = "CMA-ES on a monotone curve through a few λ, and t"
    Settings = CmaSettings
    searches_start_tokens = False

    def __init__(
        self,
        space: SearchSpace,
        settings: CmaSettings,
        seeds: Sequence[Candidate],
        seed: int,
        task: SearchTask,
    ) -> None:
        super().__init__(space, settings, seeds, seed, task)
        self._lower, self._upper = space.bounds
        self._places = np.linspace(0, space.num_pairs - 1, settings.knots)
        self._start_tokens = 0
        self._cma: CMA | None = None
        self._asked: list[Vector] = []

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last; fewer only where no seed is usable."""
        total = len(self.seeds) + self.settings.population * self.settings.iterations
        return total if not self.finished else len(self.history)

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, then a generation at a time."""
        if self.round_number == 0:
            return [Proposal(seed, "seed") for seed in self.seeds]
        if self.round_number == 1:
            if self.best is None:
                return []
            self._begin(self.best[0])
        else:
            self._tell_generation()
        if self.round_number > self.settings.iterations:
            return []
        assert self._cma is not None
        self._asked = [self._cma.ask() for _ in range(self.settings.population)]
        return [Proposal(self._decode(point), "cma") for point in self._asked]

    def _begin(self, start: Candidate) -> None:
        self._start_tokens = start.start_tokens
        knots = np.interp(self._places, np.arange(self.space.num_pairs), np.log(start.rescale))
        low, high = self._log_range
        span = high - low or 1.0
        cool, sharp = self._temperatures
        temperature = (start.attention_factor - cool) / ((sharp - cool) or 1.0)
        mean = np.clip(np.append((knots - low) / span, temperature), 0.02, 0.98)
        bounds = np.tile([0.0, 1.0], (len(mean), 1))
        self._cma = CMA(
            mean,
            self.settings.sigma,
            bounds=bounds,
            seed=self.seed % 2**32,
            population_size=self.settings.population,
        )

    def _tell_generation(self) -> None:
        assert self._cma is not None
        told = self.history[-len(self._asked) :]
        losses = [each.evaluation.loss if each.evaluation.usable else math.inf for each in told]
        worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0)
        # stopped early or not finite: behind all others of its generation
        self._cma.tell(
            [(x, min(loss, worst + 1.0)) for x, loss in zip(self._asked, losses, strict=True)]
        )

    def _decode(self, point: Vector) -> Candidate:
        low, high = self._log_range
        knots = np.maximum.accumulate(low + point[:-1] * (high - low))
        logs = np.interp(np.arange(self.space.num_pairs), self._places, knots)
        rescale = self.space.shape(np.clip(np.exp(logs), self._lower, self._upper))
        cool, sharp = self._temperatures
        return Candidate(
            tuple(rescale),
            self._start_tokens,
            float(np.clip(cool + point[-1] * (sharp - cool), cool, sharp)),
        )

    @property
    def _log_range(self) -> tuple[float, float]:
        return math.log(self._lower[0]), math.log(self._upper[-1])

    @property
    def _temperatures(self) -> tuple[float, float]:
        return self.space.attention_factors[0], self.space.attention_factors[-1]
