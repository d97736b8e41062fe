"""Runs the whole method in one run directory: planned, checked, then done stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_longrope.artifacts.records import read_record
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.summaries import RunSummary
from megatron_longrope.config import format_length, write_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.corpus import load_corpus
from megatron_longrope.pipeline.plan import plan, stages_before
from megatron_longrope.pipeline.preflight.documents import check_run_documents
from megatron_longrope.pipeline.preflight.exporting import check_export
from megatron_longrope.pipeline.preflight.folder import check_writable
from megatron_longrope.pipeline.preflight.generated import check_generated
from megatron_longrope.pipeline.preflight.lengths import check_lengths
from megatron_longrope.pipeline.preflight.machine import check_engine, check_layout
from megatron_longrope.pipeline.preflight.searches import check_searches
from megatron_longrope.pipeline.preflight.training import check_training
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.result import RunResult
from megatron_longrope.pipeline.run import Progress, Run, RunInputs, find_source
from megatron_longrope.pipeline.stages.combining import EXTENDED
from megatron_longrope.pipeline.stages.markers import StageMarkers, as_read_back, check_inputs
from megatron_longrope.pipeline.stages.runner import StageRunner
from megatron_longrope.pipeline.stages.stage import Stage
from megatron_longrope.rope import read_factors
from megatron_longrope.runtime import Runtime


@dataclass(frozen=True)
class CheckedRun:
    """A run that has passed every check which needs no weights."""

    inputs: RunInputs
    stages: tuple[Stage, ...]


def check_recipe(recipe: Recipe, run_dir: Path, world_size: int) -> CheckedRun:
    """Makes every check that needs no weights, and returns the model, documents and stages.

    What needs no documents comes first; then documents are read and tokenized. Nothing is written.
    Raises InputError for a model that is not supported, lengths that contradict each other, a
    layout or engine that does not fit `world_size` processes, the model or this machine, documents
    that are too few or short, and a run directory that was begun with other inputs.
    """
    directory = RunDirectory(run_dir)
    check_writable(directory.root)
    source = find_source(recipe, directory)
    check_lengths(recipe, source.own)
    check_training(recipe)
    check_layout(recipe, source.shape, world_size)
    check_engine(recipe, source.shape)
    check_export(recipe, source.own)
    stages = plan(recipe, source.shape, source.own)
    check_searches(recipe, stages)
    tokenizer = source.tokenizer
    check_generated(recipe, tokenizer, source.own.window)
    corpus = load_corpus(
        recipe.corpus, tokenizer, recipe.target_length, recipe.evaluation.num_documents
    )
    check_run_documents(recipe, corpus, source.shape.vocab_size)
    inputs = RunInputs(recipe, directory, source, corpus)
    check_markers(inputs, stages)
    return CheckedRun(inputs, stages)


def check_markers(inputs: RunInputs, stages: Sequence[Stage]) -> None:
    """Raises InputError where a stage was begun with other inputs than it would have now.

    What a stage reads from others is known once they are complete: until then it is not checked.
    """
    markers = StageMarkers(inputs.directory)
    complete: set[str] = set()
    for stage in stages:
        marker = markers.read(stage.name)
        if marker is not None and all(
            earlier.name in complete for earlier in stages_before(stages, stage)
        ):
            now = as_read_back(stage.fingerprint(inputs))
            check_inputs(stage.name, marker.inputs, now, stage.added_inputs)
            complete |= {stage.name} if marker.is_done else set()


def run_recipe(recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress) -> RunResult:
    """Runs all stages of a recipe in `run_dir`, on all processes, and returns the result.

    Stages that are complete are skipped. Raises InputError for bad input, and where an input of a
    stage has changed since the run began.
    """
    run, stages = _checked(recipe, run_dir, runtime, progress)
    _write_config(run)
    for stage in stages:
        stage.run(run)
    factor_set = read_factors(run.directory.factors(EXTENDED))
    summary = read_record(run.directory.result, RunSummary)
    left_behind = summary.export.left_behind if summary.export else ()
    return RunResult(run.directory.root, factor_set, left_behind)


def run_recipe_stage(
    name: str, recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress
) -> None:
    """Runs one stage of a recipe alone, from what earlier stages left in `run_dir`.

    Raises InputError for an unknown stage, and where a stage that this one depends on is not
    complete or was made from other inputs.

    Args:
        name: The name of the stage, as `longrope extend --dry-run` lists it.
        recipe: The recipe of the run.
        run_dir: The run directory.
        runtime: The processes; all of them come here together.
        progress: Where to show how far the stage is.
    """
    run, stages = _checked(recipe, run_dir, runtime, progress)
    chosen = stage_named(stages, name)
    for earlier in stages_before(stages, chosen):
        earlier.require(run)
    _write_config(run)
    chosen.run(run)


def stage_named(stages: tuple[Stage, ...], name: str) -> Stage:
    """Returns the stage called `name`; raises InputError that lists all names."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise InputError("stage", name, f"one of {', '.join(stage.name for stage in stages)}")


def _checked(
    recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress
) -> tuple[Run, tuple[Stage, ...]]:
    """Returns the context and the stages of a checked run, on all ranks."""
    checked = check_recipe(recipe, run_dir, runtime.world_size)
    runtime.barrier()  # no rank writes before all have read
    inputs = checked.inputs
    own = inputs.source.own
    if own.is_scaled:
        progress.stage(
            f"the model arrives with {own.describe()} for {format_length(own.window)}: searches "
            "build on these factors, and tables compare with them"
        )
    for note in inputs.corpus.notes:
        progress.stage(note)
    runner = StageRunner(inputs.directory, runtime, progress.stage)
    run = Run(recipe, inputs.directory, inputs.source, inputs.corpus, runtime, progress, runner)
    return run, checked.stages


def _write_config(run: Run) -> None:
    """Writes the recipe to config.yaml, once nothing is left that could refuse it."""
    if run.runtime.is_main:
        run.directory.root.mkdir(parents=True, exist_ok=True)
        write_yaml(run.recipe.model_dump(mode="json"), run.directory.config)
    run.runtime.barrier()
