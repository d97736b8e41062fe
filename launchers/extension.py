"""What `longrope extend` and `longrope demo` share: recipe, run, progress and what is printed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from launchers.printing.progress import ProgressLines, loss_words
from megatron_longrope.artifacts.records import read_record
from megatron_longrope.artifacts.rows import perplexity_of
from megatron_longrope.artifacts.summaries import RunSummary
from megatron_longrope.config import apply_settings, build_config, parse_overrides, read_yaml
from megatron_longrope.config.base import ConfigT
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.extend import CheckedRun, check_recipe, run_recipe, run_recipe_stage
from megatron_longrope.pipeline.fitting import recipe_for
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.result import RunResult
from megatron_longrope.pipeline.run import Progress
from megatron_longrope.presets import recipe_path
from megatron_longrope.runtime import start_runtime
from megatron_longrope.search import SearchProgress


def named_recipe(name_or_path: str, overrides: Sequence[str]) -> Recipe:
    """Returns a shipped recipe, or the one in a YAML file, with `overrides` applied to it.

    Raises InputError for bad input.
    """
    return recipe_with_settings(Recipe, name_or_path, overrides)


def recipe_with_settings(
    kind: type[ConfigT], name_or_path: str, overrides: Sequence[str]
) -> ConfigT:
    """Returns the shipped recipe of that name, or the one in a YAML file, with `overrides` set.

    Raises InputError for bad input. A rule about the whole recipe that only the overrides break is
    told about them.
    """
    path = recipe_path(name_or_path)
    alone = read_yaml(path)
    try:
        return build_config(kind, apply_settings(alone, parse_overrides(overrides)), str(path))
    except InputError as error:
        if overrides and error.field == str(path):
            build_config(kind, alone, str(path))  # raises what is wrong with the recipe itself
            rule = error.rule.removesuffix(f" (in {path})")
            raise InputError("--set", " ".join(overrides), rule) from error
        raise


def fitted_recipe(
    model: str, texts: Sequence[str], target: int, overrides: Sequence[str]
) -> Recipe:
    """Returns the recipe `progressive`, fitted to the window of `model` and to `target` tokens."""
    return recipe_for(model, texts, target, settings=parse_overrides(overrides))


def run_directory(recipe: Recipe, given: Path | None) -> Path:
    """Returns the directory of a run: the one given, else `runs/NAME`."""
    return given or Path("runs") / recipe.name


def check_extension(recipe: Recipe, run_dir: Path | None) -> CheckedRun:
    """Makes every check that needs no weights, and raises InputError for bad input.

    Under torchrun the layout is checked for the processes of the job, else for the fewest it needs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", recipe.parallel.model_parallel))
    return check_recipe(recipe, run_directory(recipe, run_dir), world_size)


def run_extension(recipe: Recipe, run_dir: Path | None) -> RunResult | None:
    """Runs a recipe on all processes and returns the result on the main one, None on the others.

    Raises InputError for bad input.
    """
    with start_runtime(recipe.parallel, seed=recipe.seed) as runtime:
        progress = _progress(ProgressLines(runtime.is_main))
        result = run_recipe(recipe, run_directory(recipe, run_dir), runtime, progress)
        if not runtime.is_main:
            return None
        _say_result(result)
        return result


def run_one_stage(recipe: Recipe, run_dir: Path | None, name: str) -> bool:
    """Runs one stage of a recipe on all processes and returns whether this is the main one.

    Raises InputError for bad input.
    """
    with start_runtime(recipe.parallel, seed=recipe.seed) as runtime:
        progress = _progress(ProgressLines(runtime.is_main))
        run_recipe_stage(name, recipe, run_directory(recipe, run_dir), runtime, progress)
        return runtime.is_main


def _progress(lines: ProgressLines) -> Progress:
    return Progress(lines.stage, lambda name: search_lines(lines), lambda name: lines.counter())


def search_lines(lines: ProgressLines) -> Callable[[SearchProgress], None]:
    """Returns a function that prints the progress of a search on `lines`."""

    def show(progress: SearchProgress) -> None:
        if progress.done == 0:
            return
        recovered = f" ({progress.recovered} from the journal)" if progress.recovered else ""
        best = (
            "no finite loss yet" if progress.best_loss is None else f"best {_loss_words(progress)}"
        )
        lines.step(
            progress.done, progress.total, f"evaluations{recovered}, {best}", progress.eta_seconds
        )

    return show


def _loss_words(progress: SearchProgress) -> str:
    assert progress.best_loss is not None
    return loss_words(
        progress.best_perplexity, perplexity_of(progress.best_loss, 1), progress.best_parts
    )


def _say_result(result: RunResult) -> None:
    for check in read_record(result.result_file, RunSummary).checks:
        mark = "met   " if check.met else "MISSED"
        value, bound = _number(check.value), _number(check.bound)
        click.echo(f"{mark} {check.name}: {value} (bound {bound})  {check.text}")
    click.echo(f"report: {result.report} (open it in a browser)")
    click.echo(f"result: {result.result_file} (the checks above, as JSON)")
    click.echo(f"checkpoint: {result.megatron} (Megatron, with the factors for every length)")
    if result.hugging_face.exists():
        click.echo(f"Hugging Face: {result.hugging_face} (transformers loads it as it is)")
    for text in result.left_behind:
        click.echo(f"  left behind there: {text}")
    if result.hugging_face_static.exists():
        click.echo(
            f"Hugging Face, one factor set: {result.hugging_face_static} (for engines that choose "
            "once, such as vLLM)"
        )


def _number(value: float | str | None) -> str:
    """Returns four digits of a number, text as it is, and "nan" for what was not finite."""
    return f"{value:.4g}" if isinstance(value, float) else str(value or "nan")
