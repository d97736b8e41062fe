"""The paper's evolutionary search (LongRoPE, arXiv 2402.13753, Algorithm 1), as an ask/tell
searcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from pydantic import Field

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.config import StrictConfig, parse_length
from megatron_longrope.errors import InputError
from megatron_longrope.search.options import SettingOption
from megatron_longrope.search.rounds import Proposal, RoundSearcher
from megatron_longrope.search.space import Genome, SearchSpace
from megatron_longrope.search.types import SearchTask
from megatron_longrope.search.variation import crossover, draw, mutate

_HALVED_ABOVE = 512 << 10
# Tries to find a new genome by one operator before a wider one is used.
_RETRIES = 20


class EvolutionSettings(StrictConfig):
    """Sizes of the search, in evaluations; the defaults are the paper's for targets up to 512k
    tokens."""

    population: int = Field(default=64, ge=1)
    mutants: int = Field(default=16, ge=0)
    crossovers: int = Field(default=16, ge=0)
    parents: int = Field(default=32, ge=1)
    iterations: int = Field(default=40, ge=0)
    mutation_probability: float = Field(default=0.3, gt=0, le=1)

    @classmethod
    def paper(cls, target_length: int | str) -> EvolutionSettings:
        """Returns the paper's sizes for `target_length` tokens: 1344 evaluations, above 512k half
        the sizes, 672."""
        if parse_length(target_length, "target_length") <= _HALVED_ABOVE:
            return cls()
        return cls(population=32, mutants=8, crossovers=8, parents=16)

    @property
    def num_evaluations(self) -> int:
        """Evaluations in all: the initial population and every iteration's offspring."""
        return self.population + self.iterations * (self.mutants + self.crossovers)


class _Member(NamedTuple):
    """An evaluated genome that may become a parent; `told_as` is its number in the order told."""

    loss: float
    told_as: int
    genome: tuple[int, ...]


class EvolutionSearch(RoundSearcher[EvolutionSettings]):
    """Evolution of λ, n̂ and the attention factor, generation by generation.

    Generation 0 is the seeds, projected into the space, and mutants of them. Every further
    generation is made of mutants and crossovers of the best `parents` of all evaluated so far. No
    candidate is proposed twice.

        search = EvolutionSearch(space, EvolutionSettings(), [pi, yarn], 1, task)
        while not search.finished:
            for candidate in search.ask(8):
                search.tell(candidate, evaluate(candidate))
        candidate, evaluation = search.best
    """

    name = "evolution"
    summary = "the paper's evolutionary search, by default of the paper's size"
    Settings = EvolutionSettings
    options = (
        SettingOption(
            "--population",
            "first generation; half as many become parents  "
            f"[default: the paper's, {EvolutionSettings().population}]",
            lambda size: {"population": size, "parents": max(1, size // 2)},
        ),
        SettingOption(
            "--offspring",
            "mutants, and as many crossovers, per iteration  "
            f"[default: {EvolutionSettings().mutants}]",
            lambda number: {"mutants": number, "crossovers": number},
        ),
        SettingOption(
            "--iterations",
            f"generations after the first  [default: {EvolutionSettings().iterations}]",
            lambda number: {"iterations": number},
            at_least=0,
        ),
    )

    def __init__(
        self,
        space: SearchSpace,
        settings: EvolutionSettings,
        seeds: Sequence[Candidate],
        seed: int,
        task: SearchTask,
    ) -> None:
        super().__init__(space, settings, seeds, seed, task)
        if len(self.seeds) > settings.population:
            raise InputError(
                "population",
                settings.population,
                f"must hold the {len(self.seeds)} different seeds",
            )
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._seen: set[tuple[int, ...]] = set()
        self._members: list[_Member] = []
        self._num_seen = 0  # of the history

    @classmethod
    def default_settings(cls, length: int) -> EvolutionSettings:
        """Returns the paper's sizes for `length` tokens."""
        return EvolutionSettings.paper(length)

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last; less than the settings' only once a small space has run
        out."""
        left = self.settings.iterations - self.round_number if not self.finished else 0
        of_rounds_done = len(self.history) - self._num_told
        return (
            of_rounds_done
            + len(self._round)
            + left * (self.settings.mutants + self.settings.crossovers)
        )

    @property
    def parents(self) -> list[Candidate]:
        """What the present generation was drawn from, best first."""
        return [
            self.space.decode(np.array(member.genome, dtype=np.int64)) for member in self._members
        ]

    def next_round(self) -> list[Proposal]:
        """Returns the initial population, then offspring of the best so far."""
        if self.round_number == 0:
            return list(self._initial_population())
        self._choose_parents()
        if self.round_number > self.settings.iterations:
            return []
        return list(self._offspring())

    def _choose_parents(self) -> None:
        """Keeps the best of the old parents and of the last generation's usable members."""
        for index, told in enumerate(self.history[self._num_seen :], start=self._num_seen):
            genome = self.space.encode(told.candidate)
            assert genome is not None
            if told.evaluation.usable:
                self._members.append(
                    _Member(told.evaluation.loss, index, tuple(int(gene) for gene in genome))
                )
        self._num_seen = len(self.history)
        self._members.sort(key=lambda member: (member.loss, member.told_as))
        del self._members[self.settings.parents :]

    def _initial_population(self) -> Iterator[Proposal]:
        """The seeds, and mutants of them in turn."""
        seeds = self._seed_genomes()
        for genome in seeds:
            self._is_new(genome)
            yield Proposal(self.space.decode(genome), "seed")
        for index in range(self.settings.population - len(seeds)):
            yield from self._new(partial(self._mutant, seeds[index % len(seeds) :][:1]), "mutant")

    def _offspring(self) -> Iterator[Proposal]:
        """Mutants and crossovers of the parents; of the seeds as long as nothing usable has been
        told."""
        parents = [
            np.array(member.genome, dtype=np.int64) for member in self._members
        ] or self._seed_genomes()
        for _ in range(self.settings.mutants):
            yield from self._new(partial(self._mutant, parents), "mutant")
        for _ in range(self.settings.crossovers):
            yield from self._new(partial(self._cross, parents), "crossover")

    def _new(self, propose: Callable[[], Genome], origin: str) -> Iterator[Proposal]:
        """One genome never proposed before: by `propose`, else drawn from the whole space, else
        none."""
        for attempt in range(2 * _RETRIES):
            genome = propose() if attempt < _RETRIES else draw(self.space, self._rng)
            if self._is_new(genome):
                yield Proposal(self.space.decode(genome), origin if attempt < _RETRIES else "draw")
                return

    def _mutant(self, parents: Sequence[Genome]) -> Genome:
        return mutate(
            self.space, self._choose(parents), self.settings.mutation_probability, self._rng
        )

    def _cross(self, parents: Sequence[Genome]) -> Genome:
        other = parents[int(self._rng.integers(len(parents)))]
        return crossover(self._choose(parents), other, self._rng)

    def _choose(self, parents: Sequence[Genome]) -> Genome:
        """The better of two parents drawn at random (they come best first): a small budget needs
        the pressure."""
        return parents[int(self._rng.integers(len(parents), size=2).min())]

    def _seed_genomes(self) -> list[Genome]:
        genomes = [self.space.encode(candidate) for candidate in self.seeds]
        return [genome for genome in genomes if genome is not None]

    def _is_new(self, genome: Genome) -> bool:
        """Whether `genome` is proposed for the first time; from now on it is not."""
        key = tuple(int(gene) for gene in genome)
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new
