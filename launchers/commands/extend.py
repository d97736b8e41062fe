"""`longrope extend RECIPE`: the whole method by a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from launchers.options import json_option, set_option, write_json


@click.command()
@click.argument("recipe")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Where everything is kept  [default: runs/NAME]",
)
@set_option
@json_option
def command(
    recipe: str, run_dir: Path | None, overrides: tuple[str, ...], json_path: Path | None
) -> None:
    """Extend a model by RECIPE, a YAML file or the name of a shipped one: search, fine-tune, search
    further, recover, evaluate, export. What is done is skipped; interrupted, the same command goes
    on.
    """
    from launchers.extension import run_extension

    result = run_extension(recipe, run_dir, overrides)
    if result is not None and json_path is not None:
        write_json(json_path, {"run_dir": str(result.directory), "result": str(result.result_file)})
