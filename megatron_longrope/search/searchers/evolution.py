"""LongRoPE's evolutionary search (arXiv 2402.13753, Algorithm 1) as an ask/tell searcher."""

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
from megatron_longrope.search.variation import crossover, draw_genome, mutate

_HALVED_ABOVE = 512 << 10
"""Target length in tokens above which the paper halves the sizes of the search."""
_RETRIES = 20
"""Tries of an operator to make a new genome, before a uniform draw is tried as often."""


class EvolutionSettings(StrictConfig):
    """Sizes of the search; the defaults are the paper's for targets up to 512k tokens.

    The names of the paper's Algorithm 1 stand in parentheses.
    """

    population: int = Field(default=64, ge=1)
    """Candidates of generation 0 (P)."""
    mutants: int = Field(default=16, ge=0)
    """Mutants of every further generation (N1)."""
    crossovers: int = Field(default=16, ge=0)
    """Crossovers of every further generation (N2)."""
    parents: int = Field(default=32, ge=1)
    """Best candidates so far that mutants and crossovers are made from (k)."""
    iterations: int = Field(default=40, ge=0)
    """Generations after generation 0 (T)."""
    mutation_probability: float = Field(default=0.3, gt=0, le=1)
    """Probability that a mutation changes a gene (p)."""

    @classmethod
    def paper(cls, target_length: int | str) -> EvolutionSettings:
        """Returns the paper's sizes for `target_length` tokens.

        They make 1344 evaluations; above 512k tokens the sizes are halved, to 672 evaluations.

        >>> EvolutionSettings.paper("256k").num_evaluations
        1344
        >>> EvolutionSettings.paper("2M").num_evaluations
        672
        """
        if parse_length(target_length, "target_length") <= _HALVED_ABOVE:
            return cls()
        return cls(population=32, mutants=8, crossovers=8, parents=16)

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations: the initial population and the offspring of every iteration."""
        return self.population + self.iterations * (self.mutants + self.crossovers)


class _Member(NamedTuple):
    """An evaluated genome that may become a parent.

    `told_as` is its number in the order told, which decides between equal losses.
    """

    loss: float
    told_as: int
    genome: tuple[int, ...]


class EvolutionSearch(RoundSearcher[EvolutionSettings]):
    """Evolves λ, n̂ and the attention factor, generation by generation.

    Generation 0 consists of the seeds, projected into the space, and of mutants of them, like the
    paper's initial population from PI, NTK and YaRN. Every further generation consists of mutants
    and crossovers of the best `parents` of all candidates so far. No candidate is proposed twice.

    >>> from megatron_longrope.search import Evaluation
    >>> space = SearchSpace.first_stage(num_pairs=4, scale=8)
    >>> sizes = EvolutionSettings(population=8, mutants=4, crossovers=4, parents=4, iterations=10)
    >>> task = SearchTask(length=4096, scale=8, num_documents=1)
    >>> search = EvolutionSearch(space, sizes, [Candidate((8.0,) * 4)], 1, task)
    >>> while not search.finished:
    ...     for candidate in search.ask(8):
    ...         distance = sum((x - 4) ** 2 for x in candidate.rescale)
    ...         search.tell(candidate, Evaluation(nll_sums=(distance,), token_counts=(1,)))
    >>> len(search.history), search.best[1].loss < search.history[0].evaluation.loss
    (88, True)
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
        self._num_seen = 0  # results of the history that `_choose_parents` has looked at

    @classmethod
    def default_settings(cls, length: int) -> EvolutionSettings:
        """Returns the paper's sizes for `length` tokens."""
        return EvolutionSettings.paper(length)

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations from first to last.

        It is below that of the settings only where a small space has no new candidate left.
        """
        left = self.settings.iterations - self.round_number if not self.finished else 0
        of_rounds_done = len(self.history) - self._num_told
        per_generation = self.settings.mutants + self.settings.crossovers
        return of_rounds_done + len(self._round) + left * per_generation

    @property
    def parents(self) -> list[Candidate]:
        """The candidates that the present generation was made from, best first."""
        return [
            self.space.decode(np.array(member.genome, dtype=np.int64)) for member in self._members
        ]

    def next_round(self) -> list[Proposal]:
        """Returns the initial population, then the offspring of the best candidates so far."""
        if self.round_number == 0:
            return list(self._initial_population())
        self._choose_parents()
        if self.round_number > self.settings.iterations:
            return []
        return list(self._offspring())

    def _choose_parents(self) -> None:
        """Keeps the best of the old parents and the last generation (the paper's top-k update)."""
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
        """Yields the seeds, then mutants of each of them in turn."""
        seeds = self._seed_genomes()
        for genome in seeds:
            self._is_new(genome)
            yield Proposal(self.space.decode(genome), "seed")
        for index in range(self.settings.population - len(seeds)):
            yield from self._new(partial(self._mutant, seeds[index % len(seeds) :][:1]), "mutant")

    def _offspring(self) -> Iterator[Proposal]:
        """Yields mutants and crossovers of the parents, or of the seeds while nothing is usable."""
        members = [np.array(member.genome, dtype=np.int64) for member in self._members]
        parents = members or self._seed_genomes()
        for _ in range(self.settings.mutants):
            yield from self._new(partial(self._mutant, parents), "mutant")
        for _ in range(self.settings.crossovers):
            yield from self._new(partial(self._cross, parents), "crossover")

    def _new(self, propose: Callable[[], Genome], origin: str) -> Iterator[Proposal]:
        """Yields one proposal never made before: by `propose`, else a uniform draw, else none."""
        for attempt in range(2 * _RETRIES):
            genome = propose() if attempt < _RETRIES else draw_genome(self.space, self._rng)
            if self._is_new(genome):
                yield Proposal(self.space.decode(genome), origin if attempt < _RETRIES else "draw")
                return

    def _mutant(self, parents: Sequence[Genome]) -> Genome:
        """Returns a mutant of one of `parents`, which may have been proposed before."""
        return mutate(
            self.space, self._choose(parents), self.settings.mutation_probability, self._rng
        )

    def _cross(self, parents: Sequence[Genome]) -> Genome:
        """Returns a crossover of a good parent with any parent."""
        other = parents[int(self._rng.integers(len(parents)))]
        return crossover(self._choose(parents), other, self._rng)

    def _choose(self, parents: Sequence[Genome]) -> Genome:
        """Returns the better of two parents drawn at random (a binary tournament).

        The paper draws parents uniformly; a small budget needs more selection pressure.
        """
        # parents come best first, so the smaller index is the better one
        return parents[int(self._rng.integers(len(parents), size=2).min())]

    def _seed_genomes(self) -> list[Genome]:
        genomes = [self.space.encode(candidate) for candidate in self.seeds]
        return [genome for genome in genomes if genome is not None]

    def _is_new(self, genome: Genome) -> bool:
        """Returns whether `genome` is proposed for the first time, and remembers it."""
        key = tuple(int(gene) for gene in genome)
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new
