"""The default searcher: a descent to the valley, then mutants of its end point on the grid, and n̂ where asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from megatron_longrope.config import StrictConfig
from megatron_longrope.search.descent import Descent, DescentSettings
from megatron_longrope.search.rounds import Proposal, RoundSearcher
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import Candidate
from megatron_longrope.search.variation import mutate

_RETRIES = 20


class HybridSettings(StrictConfig):
    """A step of the descent costs about three evaluations, a mutant one."""

    descent: DescentSettings = DescentSettings(steps=36)
    mutants: int = Field(default=4, ge=1)
    """Of the best candidate, per round after the descent."""
    rounds: int = Field(default=3, ge=0)
    mutation_probability: float = Field(default=0.15, gt=0, le=1)
    """Of each λ."""


class HybridSearch(RoundSearcher):
    """The seeds; a descent from the best of them; its end with every other n̂; then mutants of the best on the grid.

    Needs evaluations that come with gradients where `asks_gradient` says so.

        search = HybridSearch(space, HybridSettings(), seeds=[Candidate((8.0,) * 32)], seed=1)
    """

    name = "hybrid"

    def __init__(self, space: SearchSpace, settings: HybridSettings, seeds: Sequence[Candidate], seed: int) -> None:
        super().__init__(space, seeds, seed)
        self.settings = settings
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._descent: Descent | None = None
        self.start()

    @property
    def asks_gradient(self) -> bool:
        """While the descent is on its way, its end excepted."""
        return 0 < self.round_number <= self.settings.descent.steps

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last; fewer where nothing is usable or the space has no more to offer."""
        if self.finished:
            return len(self.history)
        settings = self.settings
        after_descent = 1 + len(self.space.start_tokens) - 1 + settings.rounds * settings.mutants
        return len(self.seeds) + settings.descent.steps + after_descent

    def settings_json(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return self.settings.model_dump(mode="json")

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, one point of the descent at a time, then the refinements."""
        last_of_descent = self.settings.descent.steps + 1
        if self.round_number == 0:
            return [Proposal(seed, "seed") for seed in self.seeds]
        if self.best is None:
            return []
        if self.round_number <= last_of_descent:
            return self._step()
        if self.round_number == last_of_descent + 1 and len(self.space.start_tokens) > 1:
            return self._other_start_tokens(self.best[0])
        first_of_mutants = last_of_descent + 1 + (len(self.space.start_tokens) > 1)
        if self.round_number < first_of_mutants + self.settings.rounds:
            return list(self._mutants(self.best[0]))
        return []

    def _step(self) -> list[Proposal]:
        assert self.best is not None
        if self._descent is None:
            self._descent = Descent(self.space, self.best[0], self.settings.descent)
        else:
            self._descent.advance(self.history[-1].evaluation)
        return [Proposal(self._descent.candidate, "step" if self.asks_gradient else "end")]

    def _other_start_tokens(self, best: Candidate) -> list[Proposal]:
        others = [n for n in self.space.start_tokens if n != best.start_tokens]
        return [Proposal(replace(best, start_tokens=n), "start tokens") for n in others]

    def _mutants(self, best: Candidate) -> Iterator[Proposal]:
        """New neighbours of the best candidate, on the grid; fewer where the space has run out of them."""
        seen = {told.candidate for told in self.history}
        parent = self.space.encode(self.space.project(best))
        assert parent is not None
        for _ in range(self.settings.mutants):
            for _ in range(_RETRIES):
                child = self.space.decode(mutate(self.space, parent, self.settings.mutation_probability, self._rng))
                if child not in seen:
                    seen.add(child)
                    yield Proposal(child, "mutant")
                    break
