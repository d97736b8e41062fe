"""Random search: the control that every other searcher must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.config import StrictConfig
from megatron_longrope.search.rounds import Proposal, RoundSearcher
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import SearchTask
from megatron_longrope.search.variation import draw_genome


class RandomSettings(StrictConfig):
    """Size of the search."""

    evaluations: int = Field(default=128, ge=1)
    """Number of draws; the seeds are evaluated besides."""


class RandomSearch(RoundSearcher[RandomSettings]):
    """Evaluates the seeds and uniform draws over the whole space, all in one round.

    >>> space = SearchSpace.first_stage(num_pairs=4, scale=8)
    >>> task = SearchTask(length=4096, scale=8, num_documents=4)
    >>> settings = RandomSettings(evaluations=3)
    >>> search = RandomSearch(space, settings, [Candidate((8.0,) * 4)], 1, task)
    >>> [space.contains(candidate) for candidate in search.ask(10)]
    [True, True, True, True]
    """

    name = "random"
    summary = "uniform draws over the whole space: the control"
    Settings = RandomSettings

    def __init__(
        self,
        space: SearchSpace,
        settings: RandomSettings,
        seeds: Sequence[Candidate],
        seed: int,
        task: SearchTask,
    ) -> None:
        super().__init__(space, settings, seeds, seed, task)
        self._rng = np.random.Generator(np.random.PCG64(seed))

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations from first to last."""
        return len(self.seeds) + self.settings.evaluations

    def next_round(self) -> list[Proposal]:
        """Returns the seeds and all draws in the first round, and nothing after it."""
        if self.round_number > 0:
            return []
        draws = [
            self.space.decode(draw_genome(self.space, self._rng))
            for _ in range(self.settings.evaluations)
        ]
        return [
            *(Proposal(seed, "seed") for seed in self.seeds),
            *(Proposal(each, "draw") for each in draws),
        ]
