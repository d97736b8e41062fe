"""The paper's evolutionary search (LongRoPE, arXiv 2402.13753, Algorithm 1), as an ask/tell searcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from megatron_longrope.config import StrictConfig, parse_length
from megatron_longrope.errors import InputError
from megatron_longrope.search.identity import check_same
from megatron_longrope.search.space import Genome, SearchSpace
from megatron_longrope.search.types import Candidate, Evaluation, Provenance, TellError
from megatron_longrope.search.variation import crossover, draw, mutate

_HALVED_ABOVE = 512 << 10
# Tries to find a new genome by one operator before a wider one is used.
_RETRIES = 20


class EvolutionSettings(StrictConfig):
    """Sizes of the search, in evaluations; the defaults are the paper's for targets up to 512k tokens."""

    population: int = Field(default=64, ge=1)
    mutants: int = Field(default=16, ge=0)
    crossovers: int = Field(default=16, ge=0)
    parents: int = Field(default=32, ge=1)
    iterations: int = Field(default=40, ge=0)
    mutation_probability: float = Field(default=0.3, gt=0, le=1)

    @classmethod
    def paper(cls, target_length: int | str) -> EvolutionSettings:
        """Returns the paper's sizes for `target_length` tokens: 1344 evaluations, above 512k half the sizes, 672."""
        if parse_length(target_length, "target_length") <= _HALVED_ABOVE:
            return cls()
        return cls(population=32, mutants=8, crossovers=8, parents=16)

    @property
    def num_evaluations(self) -> int:
        """Evaluations in all: the initial population and every iteration's offspring."""
        return self.population + self.iterations * (self.mutants + self.crossovers)


@dataclass(frozen=True)
class _Member:
    """An evaluated genome that may become a parent; `index` is its place in the order told."""

    loss: float
    index: int
    genome: tuple[int, ...]


class EvolutionSearch:
    """Evolution of λ, n̂ and the attention factor, generation by generation.

    Generation 0 is the seeds, projected into the space, and mutants of them. Every further generation is made of
    mutants and crossovers of the best `parents` of all evaluated so far. No candidate is proposed twice. A generation
    is drawn when the last result of the one before is told: the random state depends on the order of results alone.

        search = EvolutionSearch(space, EvolutionSettings(), seeds=[Candidate((8.0,) * 32)], seed=1)
        while not search.finished:
            for candidate in search.ask(8):
                search.tell(candidate, evaluate(candidate))
        candidate, evaluation = search.best
    """

    name = "evolution"

    def __init__(self, space: SearchSpace, settings: EvolutionSettings, seeds: Sequence[Candidate], seed: int) -> None:
        if not seeds:
            raise InputError("seeds", "none", "the search starts from 1 candidate or more (PI, NTK, YaRN ...)")
        self.space, self.settings, self.seed = space, settings, seed
        self.seeds = tuple(space.project(candidate) for candidate in seeds)
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._seen: set[tuple[int, ...]] = set()
        self._parents: list[_Member] = []
        self._best: tuple[Candidate, Evaluation] | None = None
        self._generation_number = 0
        self._generation: list[tuple[Genome, str]] = []
        self._num_asked = 0  # of this generation
        self._losses: list[float | None] = []  # of this generation, as told; None is not usable
        self._num_told = 0  # over all generations
        self._open_generation(self._initial_population())

    def ask(self, n: int) -> list[Candidate]:
        """Returns at most `n` candidates, never more than this generation has left; none when it is all asked."""
        if n < 1:
            raise InputError("n", n, "ask for 1 candidate or more")
        first = self._num_asked
        self._num_asked = min(first + n, len(self._generation))
        return [self.space.decode(genome) for genome, _ in self._generation[first : self._num_asked]]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Takes the result of the oldest candidate not yet told; raises TellError for any other."""
        self._check_oldest(candidate)
        self._losses.append(evaluation.loss if evaluation.usable else None)
        self._num_told += 1
        if evaluation.usable and (self._best is None or evaluation.loss < self._best[1].loss):
            self._best = (candidate, evaluation)
        if len(self._losses) == len(self._generation):
            self._close_generation()

    def provenance(self, candidate: Candidate) -> Provenance:
        """Returns generation and origin (seed, mutant, crossover, draw) of a candidate asked and not yet told."""
        for genome, origin in self._generation[len(self._losses) : self._num_asked]:
            if self.space.decode(genome) == candidate:
                return Provenance(self._generation_number, origin)
        raise TellError(f"candidate {candidate} is not waiting for its result")

    @property
    def best(self) -> tuple[Candidate, Evaluation] | None:
        """The completed candidate of lowest finite loss told so far; of equals the first."""
        return self._best

    @property
    def finished(self) -> bool:
        """Whether the last generation has been told, or the space has no new candidates."""
        return not self._generation

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last; less than the settings' only once a small space has run out."""
        to_tell = len(self._generation) - len(self._losses)
        iterations_left = self.settings.iterations - self._generation_number if self._generation else 0
        return self._num_told + to_tell + iterations_left * (self.settings.mutants + self.settings.crossovers)

    def identity(self) -> dict[str, Any]:
        """Returns what fixes the whole search: name, seed, settings, space and seeds, as JSON values."""
        return {
            "searcher": self.name,
            "seed": self.seed,
            "settings": self.settings.model_dump(mode="json"),
            "space": self.space.to_json(),
            "seeds": [candidate.to_json() for candidate in self.seeds],
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values, results of a half-told generation and random state included."""
        best = (
            None
            if self._best is None
            else {"candidate": self._best[0].to_json(), "evaluation": self._best[1].to_json()}
        )
        return {
            "identity": self.identity(),
            "random": self._rng.bit_generator.state,
            "seen": sorted(list(genome) for genome in self._seen),
            "parents": [[member.loss, member.index, list(member.genome)] for member in self._parents],
            "best": best,
            "generation_number": self._generation_number,
            "generation": [[[int(gene) for gene in genome], origin] for genome, origin in self._generation],
            "num_asked": self._num_asked,
            "losses": list(self._losses),
            "num_told": self._num_told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where `state_dict` was taken; raises InputError where it belongs to another search."""
        check_same(state["identity"], self.identity(), "search state")
        self._rng.bit_generator.state = state["random"]
        self._seen = {tuple(genome) for genome in state["seen"]}
        self._parents = [_Member(loss, index, tuple(genome)) for loss, index, genome in state["parents"]]
        best = state["best"]
        self._best = best and (Candidate.from_json(best["candidate"]), Evaluation.from_json(best["evaluation"]))
        self._generation_number = state["generation_number"]
        self._generation = [(np.array(genome, dtype=np.int64), origin) for genome, origin in state["generation"]]
        self._num_asked = state["num_asked"]
        self._losses = list(state["losses"])
        self._num_told = state["num_told"]

    def _check_oldest(self, candidate: Candidate) -> None:
        waiting = self._num_asked - len(self._losses)
        if not waiting:
            raise TellError(f"candidate {candidate} was told, but none is waiting for its result")
        if self.space.decode(self._generation[len(self._losses)][0]) != candidate:
            raise TellError(
                f"candidate {candidate} was told out of order: {waiting} are waiting, told in the order asked"
            )

    def _close_generation(self) -> None:
        """Chooses the parents among the old ones and this generation's usable members, and draws the next one."""
        first = self._num_told - len(self._generation)
        for offset, ((genome, _), loss) in enumerate(zip(self._generation, self._losses, strict=True)):
            if loss is not None:
                self._parents.append(_Member(loss, first + offset, tuple(int(gene) for gene in genome)))
        self._parents.sort(key=lambda member: (member.loss, member.index))
        del self._parents[self.settings.parents :]
        more = self._generation_number < self.settings.iterations
        self._generation_number += more
        self._open_generation(self._offspring() if more else iter(()))

    def _open_generation(self, members: Iterator[tuple[Genome, str]]) -> None:
        self._generation = list(members)
        self._num_asked = 0
        self._losses = []

    def _initial_population(self) -> Iterator[tuple[Genome, str]]:
        """The seeds, each once, and mutants of them in turn."""
        seeds = [genome for genome in self._seed_genomes() if self._is_new(genome)]
        if len(seeds) > self.settings.population:
            raise InputError("population", self.settings.population, f"must hold the {len(seeds)} different seeds")
        yield from ((genome, "seed") for genome in seeds)
        for index in range(self.settings.population - len(seeds)):
            yield from self._new(partial(self._mutant, seeds[index % len(seeds) :][:1]), "mutant")

    def _offspring(self) -> Iterator[tuple[Genome, str]]:
        """Mutants and crossovers of the parents; of the seeds as long as nothing usable has been told."""
        parents = [np.array(member.genome, dtype=np.int64) for member in self._parents] or self._seed_genomes()
        for _ in range(self.settings.mutants):
            yield from self._new(partial(self._mutant, parents), "mutant")
        for _ in range(self.settings.crossovers):
            yield from self._new(partial(self._cross, parents), "crossover")

    def _new(self, propose: Callable[[], Genome], origin: str) -> Iterator[tuple[Genome, str]]:
        """One genome never proposed before: by `propose`, else drawn from the whole space, else none."""
        for attempt in range(2 * _RETRIES):
            genome = propose() if attempt < _RETRIES else draw(self.space, self._rng)
            if self._is_new(genome):
                yield genome, origin if attempt < _RETRIES else "draw"
                return

    def _mutant(self, parents: Sequence[Genome]) -> Genome:
        return mutate(self.space, self._choose(parents), self.settings.mutation_probability, self._rng)

    def _cross(self, parents: Sequence[Genome]) -> Genome:
        other = parents[int(self._rng.integers(len(parents)))]
        return crossover(self._choose(parents), other, self._rng)

    def _choose(self, parents: Sequence[Genome]) -> Genome:
        """The better of two parents drawn at random (they come best first): a small budget needs the pressure."""
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
