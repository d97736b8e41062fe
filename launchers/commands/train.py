"""`longrope train RECIPE`: trains a fresh or a given model on packed documents."""

from __future__ import annotations

from pathlib import Path

import click

from launchers.options import json_option, set_option, write_json
from launchers.typed_names import typed_names


@click.command()
@click.argument("recipe")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Directory that keeps everything  [default: runs/NAME, by the recipe's name]",
)
@set_option
@json_option
def command(
    recipe: str, run_dir: Path | None, overrides: tuple[str, ...], json_path: Path | None
) -> None:
    """Train a fresh model, or a given one further, and write it as a Hugging Face folder.

    RECIPE is a YAML file or the name of a shipped recipe (demo-model). Interrupted, the same
    command goes on after the last checkpoint. Under `longrope launch` all processes share the
    training.
    """
    from launchers.extension import recipe_with_settings
    from launchers.printing.progress import ProgressLines
    from megatron_longrope.pipeline.pretraining import TrainRecipe, train_from_recipe
    from megatron_longrope.runtime import start_runtime

    with typed_names(overrides):
        config = recipe_with_settings(TrainRecipe, recipe, overrides)
        with start_runtime(config.parallel, seed=config.seed) as runtime:
            progress = ProgressLines(runtime.is_main)
            folder = train_from_recipe(
                config,
                run_dir or Path("runs") / config.name,
                runtime,
                progress.stage,
                progress.counter(),
            )
            if runtime.is_main:
                click.echo(f"model: {folder}")
                if json_path is not None:
                    write_json(json_path, {"model": str(folder)})
