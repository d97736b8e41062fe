"""CMA-ES on a curve: log λ over the pair index as a monotone polygon through a few knots, and t.

CMA-ES (Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772; here from the package
`cmaes`) draws generations from a normal distribution N(m, σ²·C) and moves its mean m, step size σ
and covariance C towards the best of each. It ranks candidates and ignores how much better one is.
"""

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
    """Sizes of the search."""

    knots: int = Field(default=8, ge=2)
    """Corners of the polygon, evenly spaced over the pairs."""
    population: int = Field(default=10, ge=3)
    """Candidates of a generation."""
    iterations: int = Field(default=12, ge=1)
    """Number of generations."""
    sigma: float = Field(default=0.12, gt=0)
    """Initial σ, as a share of the whole range of log λ and of t."""


class CmaSearch(RoundSearcher[CmaSettings]):
    """Evaluates the seeds, then generations of CMA-ES that start at the best of them.

    A point is [knots + 1]: log λ at each knot, then t, both mapped to [0, 1]. n̂ stays as in the
    best seed.

    >>> space = SearchSpace.first_stage(num_pairs=16, scale=8)
    >>> task = SearchTask(length=4096, scale=8, num_documents=4)
    >>> search = CmaSearch(space, CmaSettings(knots=8), [Candidate((8.0,) * 16)], 1, task)
    >>> search.num_evaluations, search.ask(4)[0].rescale[0]
    (121, 8.0)
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
        """Number of evaluations from first to last; fewer only where no seed is usable."""
        total = len(self.seeds) + self.settings.population * self.settings.iterations
        return total if not self.finished else len(self.history)

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, then one generation of CMA-ES at a time."""
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
        """Places the distribution's mean on the polygon through `start`."""
        self._start_tokens = start.start_tokens
        coordinates = self.space.coordinates(np.array(start.rescale))
        knots = np.interp(self._places, np.arange(self.space.num_pairs), coordinates)
        low, high = self.space.coordinate_range
        span = high - low or 1.0
        cool, sharp = self._temperatures
        temperature = (start.attention_factor - cool) / ((sharp - cool) or 1.0)
        # inside the bounds: on them, half of a symmetric distribution would be drawn anew
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
        """Hands the losses of the last generation to CMA-ES."""
        assert self._cma is not None
        told = self.history[-len(self._asked) :]
        losses = [each.evaluation.loss if each.evaluation.usable else math.inf for each in told]
        worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0)
        # Only ranks count: a candidate stopped early or without a finite loss comes after all
        # others of its generation.
        self._cma.tell(
            [(x, min(loss, worst + 1.0)) for x, loss in zip(self._asked, losses, strict=True)]
        )

    def _decode(self, point: Vector) -> Candidate:
        """Returns the candidate at a point of [0, 1]^(knots + 1)."""
        low, high = self.space.coordinate_range
        # the running maximum makes any point a non-decreasing λ; between knots log λ is linear
        knots = np.maximum.accumulate(low + point[:-1] * (high - low))
        coordinates = np.interp(np.arange(self.space.num_pairs), self._places, knots)
        unclipped = self.space.rescale_at(coordinates)
        rescale = self.space.shape(np.clip(unclipped, self._lower, self._upper))
        cool, sharp = self._temperatures
        return Candidate(
            tuple(rescale),
            self._start_tokens,
            float(np.clip(cool + point[-1] * (sharp - cool), cool, sharp)),
        )

    @property
    def _temperatures(self) -> tuple[float, float]:
        return self.space.attention_factors[0], self.space.attention_factors[-1]
