"""The default searcher: the best place of the ramp, then a gradient descent on λ and t from there.

The ramp makes large moves, over ripples of the loss in which a gradient descent would stop; the
descent then moves each pair on its own. Other values of n̂ follow where it is searched, and mutants
on the grid where the settings ask for them.
"""

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
"""Tries of a mutation to make a candidate that is not known."""


class HybridSettings(StrictConfig):
    """Sizes of the search; the defaults cost about 130 evaluations.

    A pass of a descent costs about three evaluations, every other candidate one at most.
    """

    ramp: RampSettings = RampSettings()
    """Settings of the search for the place of the ramp."""
    descent: DescentSettings = DescentSettings()
    """Settings of the descents."""
    cycles: int = Field(default=1, ge=0)
    """Number of descents, each from the best candidate so far."""
    mutants: int = Field(default=4, ge=1)
    """Mutants of the best candidate in each round of them."""
    rounds: int = Field(default=0, ge=0)
    """Rounds of mutants; after a descent they have found nothing better in our trials."""
    mutation_probability: float = Field(default=0.15, gt=0, le=1)
    """Probability that a mutation changes a gene."""


class HybridSearch(DescendingSearcher[HybridSettings]):
    """Evaluates the seeds, moves the best one's ramp, descends, and refines the best candidate.

    The refinements are the best candidate with every other n̂ of the space, then mutants of it.

    >>> space = SearchSpace.first_stage(num_pairs=16, scale=8)
    >>> task = SearchTask(length=4096, scale=8, num_documents=4)
    >>> search = HybridSearch(space, HybridSettings(), [Candidate((8.0,) * 16)], 1, task)
    >>> len(search.ask(8)), search.num_evaluations  # the first round holds the seed alone
    (1, 148)
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
        self.first_descent = None  # known when the search for the ramp's place has ended
        self._ramp: Ramp | None = None
        self._before_descents = len(self.seeds) + settings.ramp.most_evaluations
        self._rng = np.random.Generator(np.random.PCG64(seed))

    @classmethod
    def moves_ramps(cls, settings: HybridSettings) -> bool:
        """Returns whether there are rounds of ramps."""
        return settings.ramp.max_rounds > 0

    @classmethod
    def needs_gradients(cls, settings: HybridSettings) -> bool:
        """Returns whether there are descents, which ask for evaluations with gradients."""
        return settings.cycles > 0

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations from first to last, at most.

        It is smaller where the steps of the ramp get too small early, where nothing is usable, or
        where the space has no new candidate left.
        """
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
        """Returns the seeds, then places of the ramp, points of descents, and refinements."""
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
        """Returns the next places of the ramp; an empty list when their search is over."""
        if self._ramp is None:
            self._ramp = Ramp(self.space, best, self.settings.ramp)
        known = {told.candidate for told in self.history}
        return [Proposal(candidate, "ramp") for candidate in self._ramp.next_round(best, known)]

    def _other_start_tokens(self, best: Candidate) -> list[Proposal]:
        """Returns the best candidate with every other n̂ of the space."""
        others = [n for n in self.space.start_tokens if n != best.start_tokens]
        return [Proposal(replace(best, start_tokens=n), "start tokens") for n in others]

    def _mutants(self, best: Candidate) -> Iterator[Proposal]:
        """Yields new mutants of the best candidate, on the grid; fewer where few are left."""
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
