"""Plans the stages of a run from its recipe and the sizes of the model alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.corpus_config import CorpusConfig
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.recipe import ExtensionStep, FineTuneConfig, Recipe
from megatron_longrope.pipeline.run import BASE
from megatron_longrope.pipeline.searching import search_name
from megatron_longrope.pipeline.stages.combining import CombineFactors, RunParts
from megatron_longrope.pipeline.stages.evaluating import MeasureModels
from megatron_longrope.pipeline.stages.exported import MeasureExport
from megatron_longrope.pipeline.stages.exporting import ExportModel
from megatron_longrope.pipeline.stages.importing import ImportModel
from megatron_longrope.pipeline.stages.packing import PackRows
from megatron_longrope.pipeline.stages.reporting import WriteResult
from megatron_longrope.pipeline.stages.searching import (
    FirstSearch,
    Found,
    RecoverySearch,
    SearchFactors,
    SecondSearch,
)
from megatron_longrope.pipeline.stages.stage import Stage
from megatron_longrope.pipeline.stages.training import TrainWeights
from megatron_longrope.rope import OwnScaling

_CONTROL = "control"


def plan(recipe: Recipe, shape: ModelShape, own: OwnScaling) -> tuple[Stage, ...]:
    """Returns the stages of a run of `recipe` on a model of this shape, in the order they are done.

    First every length that is trained is searched on the model as it arrives; then the lengths are
    trained one after the other. Longer lengths and short inputs are searched on the weights that
    were trained last. Where the model arrives with scaling of its own, `own`, the first searches
    build on that. Raises InputError for a search whose settings have no meaning there.
    """
    recipe.check_searches(arrives_scaled=own.is_scaled)
    planner = _Planner(recipe, shape, own)
    first = planner.first_searches()
    trained = list(planner.training(first))
    parts, later = planner.later_searches(first)
    exporting = tuple(_exporting(recipe, parts, shape))
    last: list[Stage] = [
        CombineFactors("extended", parts),
        MeasureModels("evaluate", parts, recipe.evaluation, shape, own),
        *exporting,
        WriteResult("report", parts, tuple(stage.name for stage in exporting)),
    ]
    stages = [ImportModel("import", recipe.model), *first, *trained, *later, *last]
    _refuse_equal_names(stages)
    return tuple(stages)


def _exporting(recipe: Recipe, parts: RunParts, shape: ModelShape) -> Iterator[Stage]:
    """Yields the export, and the measurement of what was exported."""
    if recipe.export:
        yield ExportModel("export", parts)
        if recipe.evaluation.exported is not None:
            yield MeasureExport("evaluate-export", parts, recipe.evaluation, shape)


def stages_before(stages: Sequence[Stage], stage: Stage) -> tuple[Stage, ...]:
    """Returns the stages whose outputs `stage` reads, directly or by way of other stages."""
    needed, found = set(stage.inputs), []
    for earlier in reversed(stages[: stages.index(stage)]):
        if needed & {*earlier.outputs}:
            found.append(earlier)
            needed |= {*earlier.inputs}
    return tuple(reversed(found))


@dataclass(frozen=True)
class _Planner:
    """Makes the stages of one recipe out of its steps."""

    recipe: Recipe
    shape: ModelShape
    own: OwnScaling

    @property
    def _trained(self) -> list[tuple[ExtensionStep, FineTuneConfig]]:
        return [(step, step.fine_tune) for step in self.recipe.extension if step.fine_tune]

    @property
    def _weights(self) -> str:
        """Name of the checkpoint that is trained last; of the pretrained one if none is."""
        return _trained_name(self._trained[-1][0]) if self._trained else BASE

    def first_searches(self) -> list[SearchFactors]:
        """Returns the searches for the lengths that are trained, on the pretrained model."""
        return [self._first(step) for step, _ in self._trained]

    def training(self, searches: Sequence[SearchFactors]) -> Iterator[Stage]:
        """Yields packing and training of each trained length, and of the control."""
        start = BASE
        for (step, config), search in zip(self._trained, searches, strict=True):
            name = _trained_name(step)
            yield from self._train(name, config, start, search.found, max_piece=None)
            if config.control:
                yield from self._train(_CONTROL, config, BASE, None, max_piece=self.own.window)
            start = name

    def later_searches(
        self, first: Sequence[SearchFactors]
    ) -> tuple[RunParts, list[SearchFactors]]:
        """Returns the parts of the extended model, and the searches that no training follows."""
        tuned = first[-1].found if first else None
        beyond = [
            self._second(step, tuned) if tuned else self._first(step)
            for step in self.recipe.extension
            if step.fine_tune is None
        ]
        steps = ((tuned,) if tuned else ()) + tuple(search.found for search in beyond)
        recoveries = [
            RecoverySearch(
                search_name(step.length, step.search, "recover"),
                step.search,
                step.length,
                self._weights,
                self._num_documents(step.search.num_documents),
                self.shape,
                self.own,
                self.recipe.recompute,
                tuned or steps[-1],
                steps[-1],
                step.upper,
            )
            for step in self.recipe.recovery
        ]
        has_control = any(config.control for _, config in self._trained)
        parts = RunParts(
            self._weights,
            (first or beyond)[0].found,
            tuned,
            steps,
            tuple(search.found for search in recoveries),
            _CONTROL if has_control else None,
            self._trained[-1][1].short_inputs if self._trained else "extended",
        )
        return parts, [*beyond, *recoveries]

    def _first(self, step: ExtensionStep) -> SearchFactors:
        return FirstSearch(
            search_name(step.length, step.search),
            step.search,
            step.length,
            BASE,
            self._num_documents(step.search.num_documents),
            self.shape,
            self.own,
            self.recipe.recompute,
        )

    def _second(self, step: ExtensionStep, tuned: Found) -> SearchFactors:
        return SecondSearch(
            search_name(step.length, step.search),
            step.search,
            step.length,
            self._weights,
            self._num_documents(step.search.num_documents),
            self.shape,
            self.own,
            self.recipe.recompute,
            tuned,
        )

    def _train(
        self,
        name: str,
        config: FineTuneConfig,
        start: str,
        factors: Found | None,
        max_piece: int | None,
    ) -> tuple[Stage, Stage]:
        rows = PackRows(f"data-{name}", config, name, max_piece)
        training = TrainWeights(
            name,
            config,
            start,
            factors,
            rows.name,
            self.shape,
            self.own,
            self.recipe.recompute,
        )
        return rows, training

    def _num_documents(self, wanted: int) -> int:
        return min(wanted, _most_search_documents(self.recipe.corpus) or wanted)


def _trained_name(step: ExtensionStep) -> str:
    return f"fine-tune-{step.length}"


def _most_search_documents(corpus: CorpusConfig) -> int | None:
    """Returns how many documents there are to search on; None before they are read."""
    if corpus.standard_library:
        return None
    return corpus.num_search if corpus.documents else len(corpus.search)


def _refuse_equal_names(stages: Sequence[Stage]) -> None:
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            rule = "two stages of this recipe have that name: one step trains a control, at most"
            raise InputError("stage", name, rule)
