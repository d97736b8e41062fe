"""Runs the whole method in one run directory: planned, checked, then done stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_longrope.artifacts.records import read_record
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.summaries import RunSummary
from megatron_longrope.config import format_length, write_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.corpus import Corpus, load_corpus
from megatron_longrope.pipeline.plan import plan, stages_before
from megatron_longrope.pipeline.preflight import (
    check_export,
    check_layout,
    check_search_documents,
)
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.result import RunResult
from megatron_longrope.pipeline.run import Progress, Run, Source, find_source
from megatron_longrope.pipeline.stages.combining import EXTENDED
from megatron_longrope.pipeline.stages.runner import StageRunner
from megatron_longrope.pipeline.stages.stage import Stage
from megatron_longrope.rope import read_factors
from megatron_longrope.runtime import Runtime


@dataclass(frozen=True)
class CheckedRun:
    """A run that has passed every check which needs no weights."""

    source: Source
    corpus: Corpus
    stages: tuple[Stage, ...]


def check_recipe(recipe: Recipe, run_dir: Path, world_size: int) -> CheckedRun:
    """Makes every check that needs no weights, and returns the model, documents and stages.

    Documents are read and tokenized. Raises InputError for a model that is not supported, a layout
    that does not fit `world_size` processes or the model, and documents that are too few or short.
    """
    source = find_source(recipe, RunDirectory(run_dir))
    check_layout(recipe, source.shape, source.own, world_size)
    check_export(recipe, source.own)
    stages = plan(recipe, source.shape, source.own)
    corpus = load_corpus(recipe.corpus, source.tokenizer, recipe.target_length)
    check_search_documents(recipe, corpus)
    return CheckedRun(source, corpus, stages)


def run_recipe(recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress) -> RunResult:
    """Runs all stages of a recipe in `run_dir`, on all processes, and returns the result.

    Stages that are complete are skipped. Raises InputError for bad input, and where an input of a
    stage has changed since the run began.
    """
    run, stages = _begin(recipe, run_dir, runtime, progress)
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
    run, stages = _begin(recipe, run_dir, runtime, progress)
    chosen = stage_named(stages, name)
    for earlier in stages_before(stages, chosen):
        earlier.require(run)
    chosen.run(run)


def stage_named(stages: tuple[Stage, ...], name: str) -> Stage:
    """Returns the stage called `name`; raises InputError that lists all names."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise InputError("stage", name, f"one of {', '.join(stage.name for stage in stages)}")


def _begin(
    recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress
) -> tuple[Run, tuple[Stage, ...]]:
    """Returns the context and the stages of a checked run, and writes its recipe to config.yaml."""
    checked = check_recipe(recipe, run_dir, runtime.world_size)
    directory = RunDirectory(run_dir)
    if runtime.is_main:
        directory.root.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe.model_dump(mode="json"), directory.config)
    runtime.barrier()
    own = checked.source.own
    if own.is_scaled:
        progress.stage(
            f"the model arrives with {own.describe()} for {format_length(own.window)}: searches "
            "build on these factors, and tables compare with them"
        )
    for note in checked.corpus.notes:
        progress.stage(note)
    runner = StageRunner(directory, runtime, progress.stage)
    run = Run(recipe, directory, runtime, progress, runner, checked.source, checked.corpus)
    return run, checked.stages
