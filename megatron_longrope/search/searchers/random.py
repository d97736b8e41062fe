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
from megatron_longrope.search.variation import draw


class RandomSettings(StrictConfig):
    """How many draws, seeds not counted."""

    evaluations: int = Field(default=128, ge=1)


class RandomSearch(RoundSearcher[RandomSettings]):
    """The seeds, then draws over the whole space, all in one round.

    search = RandomSearch(space, RandomSettings(evaluations=100), [pi, yarn], 1, task)
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
        """Evaluations from first to last."""
        return len(self.seeds) + self.settings.evaluations

    def next_round(self) -> list[Proposal]:
        """Returns everything at once."""
        if self.round_number > 0:
            return []
        draws = [
            self.space.decode(draw(self.space, self._rng)) for _ in range(self.settings.evaluations)
        ]
        return [
            *(Proposal(seed, "seed") for seed in self.seeds),
            *(Proposal(each, "draw") for each in draws),
        ]
