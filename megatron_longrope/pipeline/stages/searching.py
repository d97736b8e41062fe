"""Stages that search rescale factors: for a first length, a further one, and short inputs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

from megatron_longrope.config import format_length
from megatron_longrope.evaluation import documents_sha256
from megatron_longrope.model import ModelShape
from megatron_longrope.model.engine.settings import Recompute
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.run import Run, RunInputs, angle_inputs, backend_inputs, geometry_of
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    best_ramp,
    extension_search,
    loss_in_words,
    recovery_search,
    search_cost,
    search_factors,
    search_objective,
    second_search,
)
from megatron_longrope.pipeline.stages.search_cost import most_of_a_search, new_searcher
from megatron_longrope.pipeline.stages.stage import (
    PLACES,
    Cost,
    Stage,
    checkpoint_path,
    factors_path,
)
from megatron_longrope.rope import OwnScaling, RopeFactors, Yarn, factors_to_json


@dataclass(frozen=True)
class Found:
    """Factors that a search stage finds."""

    search: str
    """Name of the stage."""
    length: int
    """The length in tokens that it searches for."""
    moves_ramps: bool = False
    """Whether it moves YaRN's ramp on the way, whose best place is then measured too."""

    def factors(self, run: RunInputs) -> RopeFactors:
        """Returns the factors; raises InputError unless the stage is complete."""
        return run.found(self.search, self.length)

    def best_ramp(self, run: Run, yarn: RopeFactors) -> RopeFactors | None:
        """Returns `yarn` with the best ramp this search scored; None if it moved no ramp."""
        if not self.moves_ramps:
            return None
        return best_ramp(run.directory.journal(self.search), yarn)


@dataclass(frozen=True)
class SearchFactors(Stage):
    """Searches the factors of one checkpoint for inputs of `length` tokens."""

    kind = "search"
    added_inputs = ("trained_from",)
    config: SearchConfig
    length: int
    weights: str
    """Name of the checkpoint that is searched on."""
    num_documents: int
    """Most documents that are searched on, for the cost."""
    shape: ModelShape
    own: OwnScaling
    """The scaling that the model of the run arrived with."""
    recompute: Recompute
    """Which activations a backward pass computes again, for the cost."""

    @abstractmethod
    def problem(self, tuned: RopeFactors | None) -> SearchProblem:
        """Returns space and starts of the search; `tuned` are the factors that it builds on."""

    @property
    def builds_on(self) -> Found | None:
        """The factors that this search builds on; None for a first search."""
        return None

    @property
    def found(self) -> Found:
        """The reference by which other stages name this search's factors."""
        return Found(self.name, self.length, self.config.searcher.moves_ramps(self.length))

    @property
    def checkpoint(self) -> str:
        """The checkpoint that is searched on."""
        return self.weights

    @property
    def inputs(self) -> tuple[str, ...]:
        """The checkpoint, and the factors the search builds on."""
        before = (factors_path(self.builds_on.search),) if self.builds_on else ()
        return (checkpoint_path(self.weights), *before)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The journal of evaluations, and the best factors."""
        return (str(PLACES.journal(self.name)), factors_path(self.name))

    @property
    def outline(self) -> SearchProblem:
        """The search as it can be known beforehand: it builds on factors of the right length."""
        geometry, tuned = geometry_of(self.shape), None
        if self.builds_on is not None:  # any such factors: they leave the budget as it is
            scale = max(1.0, self.builds_on.length / geometry.original_length)
            tuned = Yarn(scale=scale).factors(geometry)
        return self.problem(tuned)

    def set_up(self) -> None:
        """Raises InputError where the space or the searcher cannot be made."""
        new_searcher(self.outline, self.config, self.num_documents, self.shape)

    @cached_property
    def cost(self) -> Cost:
        """What the searcher takes where every evaluation is made in full."""
        return most_of_a_search(
            self.outline, self.config, self.num_documents, self.shape, self.recompute
        )

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns the settings, space, documents, weights and precision of the search."""
        recipe = run.recipe
        return {
            "search": self.config.model_dump(mode="json"),
            "space": self.problem_in(run).space.to_json(),
            "length": self.length,
            "documents": documents_sha256(run.corpus.search[: self.config.num_documents]),
            "checkpoint": self.weights,
            **run.trained_from(self.weights),
            "dtype": recipe.dtype,
            **angle_inputs(recipe.angle_precision),
            **backend_inputs(recipe.backend.for_scoring()),
        }

    def work(self, run: Run) -> dict[str, object]:
        """Searches to the end; returns the factors, their cost and their perplexity or score."""
        documents = run.corpus.search[: self.config.num_documents]
        problem = self.problem_in(run)
        model = run.load(self.weights)
        objective = search_objective(model, documents, run.tokenizer, self.config, self.length)
        factors, outcome = search_factors(
            problem,
            objective,
            self.config,
            run.directory,
            documents_sha256(documents),
            run.progress.search(self.name),
            run.recipe.model,
        )
        cost = search_cost(outcome.entries, objective.cost)
        loss = loss_in_words(objective, outcome.evaluation)
        if "parts" in loss:
            loss["parts"] = [part.model_dump() for part in loss["parts"]]
        return {
            "factors": factors_to_json(factors),
            **cost.model_dump(),
            "stopped_early": outcome.stopped_early,
            **loss,
        }

    def problem_in(self, run: RunInputs) -> SearchProblem:
        """Returns the search on the factors that earlier stages of the run have found."""
        tuned = self.builds_on.factors(run) if self.builds_on else None
        return self.problem(tuned)


@dataclass(frozen=True)
class FirstSearch(SearchFactors):
    """The search of the model as it arrives for a length beyond its window."""

    @property
    def does(self) -> str:
        """What the stage does, with length, searcher and the scaling that it builds on."""
        beyond = f", beyond the model's own {self.own.describe()}" if self.own.is_scaled else ""
        length = format_length(self.length)
        return f"search factors for {length}{beyond} ({self.config.searcher.name})"

    def problem(self, tuned: RopeFactors | None) -> SearchProblem:
        """Returns the search from the methods in the settings, on top of the model's scaling."""
        return extension_search(self.config, self.own, self.length)


@dataclass(frozen=True)
class SecondSearch(SearchFactors):
    """The search of a fine-tuned model for a further length, which no training follows."""

    tuned: Found

    @property
    def does(self) -> str:
        """What the stage does, with length and searcher."""
        return (
            f"search further factors for {format_length(self.length)} ({self.config.searcher.name})"
        )

    @property
    def builds_on(self) -> Found:
        """The factors that the model was fine-tuned under."""
        return self.tuned

    def problem(self, tuned: RopeFactors | None) -> SearchProblem:
        """Returns the search that starts from the fine-tuned factors."""
        assert tuned is not None
        return second_search(self.config, geometry_of(self.shape), self.length, tuned)


@dataclass(frozen=True)
class RecoverySearch(SearchFactors):
    """The search of the extended model for short inputs, with smaller λ allowed."""

    tuned: Found
    """The factors of the extended model that the space reaches up to."""
    last: Found
    """The factors of the longest inputs, whose attention factor the short ones inherit."""
    upper: float | None

    @property
    def does(self) -> str:
        """What the stage does, with length and searcher."""
        return f"search factors for inputs up to {format_length(self.length)}" + (
            f" ({self.config.searcher.name})"
        )

    @property
    def builds_on(self) -> Found:
        """The factors of the extended model."""
        return self.tuned

    def problem(self, tuned: RopeFactors | None) -> SearchProblem:
        """Returns the search between the factors the model arrived with and the extended ones."""
        assert tuned is not None
        return recovery_search(self.config, self.own, self.length, tuned, self.upper)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The checkpoint, the factors the search builds on, and those of the longest inputs."""
        return tuple(dict.fromkeys((*super().inputs, factors_path(self.last.search))))

    def problem_in(self, run: RunInputs) -> SearchProblem:
        """Returns the search, which inherits the attention factor of the longest inputs."""
        return recovery_search(
            self.config,
            self.own,
            self.length,
            self.tuned.factors(run),
            self.upper,
            self.last.factors(run),
        )
