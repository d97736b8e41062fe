"""What `longrope extend` and `longrope demo` share: a recipe, processes, progress, and the closing
lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from launchers.progress import ProgressLines
from megatron_longrope.artifacts.records import read_record
from megatron_longrope.artifacts.summaries import RunSummary
from megatron_longrope.config import apply_overrides, build_config, read_yaml
from megatron_longrope.pipeline.extend import run_recipe
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.result import RunResult
from megatron_longrope.pipeline.types import Progress
from megatron_longrope.presets import recipe_path
from megatron_longrope.runtime import start_runtime
from megatron_longrope.search import SearchProgress


def run_extension(recipe: str, run_dir: Path | None, overrides: Sequence[str]) -> RunResult | None:
    """Runs a recipe on all processes; returns the result on the main one. Raises InputError for bad
    input."""
    path = recipe_path(recipe)
    config = build_config(Recipe, apply_overrides(read_yaml(path), overrides), str(path))
    with start_runtime(config.parallel, seed=config.seed) as runtime:
        lines = ProgressLines(runtime.is_main)
        progress = Progress(
            lines.stage, lambda name: search_lines(lines), lambda name: lines.counter()
        )
        result = run_recipe(config, run_dir or Path("runs") / config.name, runtime, progress)
        if not runtime.is_main:
            return None
        _say_result(result)
        return result


def search_lines(lines: ProgressLines) -> Callable[[SearchProgress], None]:
    def show(progress: SearchProgress) -> None:
        if progress.done == 0:
            return
        recovered = f" ({progress.recovered} from the journal)" if progress.recovered else ""
        best = (
            f"best perplexity {progress.best_perplexity:.4f}"
            if progress.best_perplexity
            else "nothing usable yet"
        )
        lines.step(
            progress.done, progress.total, f"evaluations{recovered}  {best}", progress.eta_seconds
        )

    return show


def _say_result(result: RunResult) -> None:
    for check in read_record(result.result_file, RunSummary).checks:
        mark = "met   " if check.met else "MISSED"
        value, bound = _number(check.value), _number(check.bound)
        click.echo(f"{mark} {value} (bound {bound})  {check.text}")
    click.echo(f"report: {result.report}")
    click.echo(f"result: {result.result_file}")
    click.echo(f"checkpoint: {result.megatron}")
    if result.hugging_face.exists():
        click.echo(f"Hugging Face: {result.hugging_face}")


def _number(value: float | str | None) -> str:
    """Four digits of a check's number, its text where it is one; "nan" where it was not finite."""
    return f"{value:.4g}" if isinstance(value, float) else str(value or "nan")
