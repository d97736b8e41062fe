"""The whole method in one run directory: planned, checked, then done stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.config import format_length, write_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.corpus import Corpus, load_corpus
from megatron_longrope.pipeline.plan import plan, stages_before
from megatron_longrope.pipeline.preflight import check_documents, check_export, check_layout
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
    """A run that nothing speaks against so far as can be told without weights."""

    source: Source
    corpus: Corpus
    stages: tuple[Stage, ...]


def check_recipe(recipe: Recipe, run_dir: Path, world_size: int) -> CheckedRun:
    """Returns a recipe's stages after every check that needs no weights; documents are tokenized.

    Raises InputError for a model, a layout over `world_size` processes, or documents that cannot
    serve.
    """
    source = find_source(recipe, RunDirectory(run_dir))
    check_layout(recipe, source.shape, source.own, world_size)
    check_export(recipe, source.own)
    stages = plan(recipe, source.shape, source.own)
    corpus = load_corpus(recipe.corpus, source.tokenizer, recipe.target_length)
    check_documents(recipe, corpus)
    return CheckedRun(source, corpus, stages)


def run_recipe(recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress) -> RunResult:
    """Runs a recipe in `run_dir` on the processes of `runtime`, going on from what is there.

    Raises InputError for bad input, and where inputs changed since the run began.
    """
    run, stages = _begin(recipe, run_dir, runtime, progress)
    for stage in stages:
        stage.run(run)
    factor_set = read_factors(run.directory.factors(EXTENDED))
    return RunResult(run.directory.root, factor_set)


def run_stage(
    name: str, recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress
) -> None:
    """Runs one stage of a recipe alone, from what the stages before it left in `run_dir`.

    Raises InputError for a name that is no stage's, and where a stage it depends on is not complete
    or was made from other inputs.
    """
    run, stages = _begin(recipe, run_dir, runtime, progress)
    chosen = stage_named(stages, name)
    for earlier in stages_before(stages, chosen):
        earlier.require(run)
    chosen.run(run)


def stage_named(stages: tuple[Stage, ...], name: str) -> Stage:
    """Returns the stage of this name; raises InputError that lists the names there are."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise InputError("stage", name, f"one of {', '.join(stage.name for stage in stages)}")


def _begin(
    recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress
) -> tuple[Run, tuple[Stage, ...]]:
    """The context of a checked run, and its stages; leaves the recipe in the run directory."""
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
    runner = StageRunner(directory, runtime, progress.stage)
    run = Run(recipe, directory, runtime, progress, runner, checked.source, checked.corpus)
    return run, checked.stages
