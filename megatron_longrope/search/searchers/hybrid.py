"""The default searcher: the best ramp, descents from it, then n̂ where it is asked for and mutants
on the grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.config import StrictConfig
from megatron_longrope.search.descent import DescentSettings
from megatron_longrope.search.descents import DescendingSearcher
from megatron_longrope.search.options import SettingOption
from megatron_longrope.search.ramp import Ramp, RampSettings
from megatron_longrope.search.rounds import Proposal
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import SearchTask
from megatron_longrope.search.variation import mutate

_RETRIES = 20


class HybridSettings(StrictConfig):
    """A pass of a descent costs about three evaluations, any other candidate one at most: 130 by
    default."""

    ramp: RampSettings = RampSettings()
    descent: DescentSettings = DescentSettings()
    cycles: int = Field(default=1, ge=0)
    """Descents, each from the best candidate so far; 0: none."""
    mutants: int = Field(default=4, ge=1)
    """Of the best candidate, per round after the descents."""
    rounds: int = Field(default=0, ge=0)
    """Of mutants: after a descent they have found nothing better in our trials."""
    mutation_probability: float = Field(default=0.15, gt=0, le=1)
    """Of each λ."""


class HybridSearch(DescendingSearcher[HybridSettings]):
    """The seeds; the best one's ramp moved; descents from the best so far; the best with every
    other n̂; mutants of it.

        search = HybridSearch(space, HybridSettings(), [pi, yarn], 1, task)
    """

    name = "hybrid"
    summary = "the best start's ramp moved, then a gradient descent on λ and t"
    Settings = HybridSettings
    options = (
        SettingOption(
            "--ramp-rounds",
            "moves of the ramp, at most six evaluations each  "
            f"[default: at most {RampSettings().max_rounds}]",
            lambda rounds: {"ramp": {"max_rounds": rounds}},
            at_least=0,
        ),
        SettingOption(
            "--passes",
            "passes of the descent over the documents, about three evaluations each; 0: none  "
            f"[default: {DescentSettings().passes}]",
            lambda passes: {"descent": {"passes": passes}} if passes else {"cycles": 0},
            at_least=0,
        ),
    )

    def __init__(
        self,
        space: SearchSpace,
        settings: HybridSettings,
        seeds: Sequence[Candidate],
        seed: int,
        task: SearchTask,
    ) -> None:
        super().__init__(space, settings, seeds, seed, task)
        self.plan_descents(settings.descent, settings.cycles)
        self.first_descent = None
        self._ramp: Ramp | None = None
        self._before_descents = len(self.seeds) + settings.ramp.most_evaluations
        self._rng = np.random.Generator(np.random.PCG64(seed))

    @classmethod
    def needs_gradients(cls, settings: HybridSettings) -> bool:
        """Whether evaluations with gradients are among those that `settings` lead to."""
        return settings.cycles > 0

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last; fewer where nothing is usable or the space has no more to
        offer."""
        if self.finished:
            return len(self.history)
        others = len(self.space.start_tokens) - 1
        return (
            self._before_descents
            + self.num_descent_rounds
            + others
            + self.settings.rounds * self.settings.mutants
        )

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, one point of a descent at a time, then the refinements."""
        if self.round_number == 0:
            return [Proposal(seed, "seed") for seed in self.seeds]
        if self.best is None:
            return []
        if self.first_descent is None:
            places = self._move_ramp(self.best[0])
            if places:
                return places
            self.first_descent = self.round_number
            self._before_descents = len(self.history)
        after = self.descent_round - self.num_descent_rounds
        if after < 0:
            return self.descend()
        searches_start = len(self.space.start_tokens) > 1
        refinement = after + 1 - searches_start
        if refinement == 0:
            return self._other_start_tokens(self.best[0])
        return list(self._mutants(self.best[0])) if refinement <= self.settings.rounds else []

    def _move_ramp(self, best: Candidate) -> list[Proposal]:
        if self._ramp is None:
            self._ramp = Ramp(self.space, best, self.settings.ramp)
        known = {told.candidate for told in self.history}
        return [Proposal(candidate, "ramp") for candidate in self._ramp.next_round(best, known)]

    def _other_start_tokens(self, best: Candidate) -> list[Proposal]:
        others = [n for n in self.space.start_tokens if n != best.start_tokens]
        return [Proposal(replace(best, start_tokens=n), "start tokens") for n in others]

    def _mutants(self, best: Candidate) -> Iterator[Proposal]:
        """New neighbours of the best candidate, on the grid; fewer where the space has run out of
        them."""
        seen = {told.candidate for told in self.history}
        parent = self.space.encode(self.space.project(best))
        assert parent is not None
        for _ in range(self.settings.mutants):
            for _ in range(_RETRIES):
                child = self.space.decode(
                    mutate(self.space, parent, self.settings.mutation_probability, self._rng)
                )
                if child not in seen:
                    seen.add(child)
                    yield Proposal(child, "mutant")
                    break
