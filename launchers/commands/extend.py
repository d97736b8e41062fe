"""`longrope extend`: the whole method, by a recipe or fitted to a given model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launchers.list_options import ListOptionsCommand
from launchers.options import LENGTH, json_option, set_option, write_json
from launchers.typed_names import fitted_names, typed_names
from megatron_longrope.errors import InputError

if TYPE_CHECKING:  # imports torch, which `--help` does without
    from megatron_longrope.pipeline.recipe import Recipe


@click.command(cls=ListOptionsCommand)
@click.argument("recipe", required=False)
@click.option(
    "--model", metavar="DIR", help="Hugging Face folder of the model to extend, instead of RECIPE."
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE …",
    help="With --model: text files in UTF-8, one document each; files, folders or patterns. The "
    "first that are as long as the target are searched on and held out, the rest is trained on.",
)
@click.option(
    "--target",
    type=LENGTH,
    metavar="LENGTH",
    help="With --model: context length in tokens to reach, such as 32k.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Directory that keeps everything  [default: runs/NAME, by the recipe's name]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything that can be checked without weights, print the stages with their cost, "
    "and run nothing.",
)
@click.option(
    "--stage",
    metavar="NAME",
    help="Run this stage alone, from what earlier stages left; --dry-run lists the names.",
)
@set_option
@json_option
def command(
    recipe: str | None,
    model: str | None,
    texts: tuple[str, ...],
    target: int | None,
    run_dir: Path | None,
    dry_run: bool,
    stage: str | None,
    overrides: tuple[str, ...],
    json_path: Path | None,
) -> None:
    """Extend a model to a longer context.

    The stages are: search factors, fine-tune under them, search further, recover short inputs,
    measure, export.

    Give either RECIPE, a YAML file or the name of a shipped recipe (demo, progressive,
    smollm2-64k), or --model, --text and --target: these fit the recipe `progressive` to the model's
    window.

    Everything is kept in the run directory. Stages that are done are skipped; interrupted, the same
    command goes on where it stopped. At the end the checks are printed, and where the report and
    the extended model are.
    """
    _check_source(recipe, model, texts, target)
    if dry_run and stage is not None:
        raise InputError("--stage", stage, "--dry-run prints all stages and runs none")
    from launchers import extension

    names = typed_names(overrides) if recipe else fitted_names(overrides)
    with names:
        if recipe is not None:
            config = extension.named_recipe(recipe, overrides)
        else:
            assert model is not None and target is not None
            config = extension.fitted_recipe(model, texts, target, overrides)
        if dry_run:
            _print_plan(config, run_dir, json_path)
        elif stage is not None:
            is_main = extension.run_one_stage(config, run_dir, stage)
            if is_main and json_path is not None:
                run = extension.run_directory(config, run_dir)
                write_json(json_path, {"run_dir": str(run), "stage": stage})
        else:
            result = extension.run_extension(config, run_dir)
            if result is not None and json_path is not None:
                paths = {"run_dir": str(result.directory), "result": str(result.result_file)}
                write_json(json_path, paths)


def _print_plan(config: Recipe, run_dir: Path | None, json_path: Path | None) -> None:
    """Prints the stages of a checked recipe on the main rank, and writes them as JSON."""
    from launchers import extension
    from launchers.printing.stage_table import print_stages

    checked = extension.check_extension(config, run_dir)
    if os.environ.get("RANK", "0") != "0":
        return
    print_stages(checked)
    if json_path is not None:
        write_json(json_path, {"stages": [planned.to_json() for planned in checked.stages]})


def _check_source(
    recipe: str | None, model: str | None, texts: tuple[str, ...], target: int | None
) -> None:
    """Raises InputError unless there is either a recipe, or model, documents and target."""
    if (recipe is None) == (model is None):
        given = "nothing" if recipe is None else f"{recipe} and {model}"
        raise InputError("RECIPE", given, "give either RECIPE, or --model with --text and --target")
    fitted = {"--text": bool(texts), "--target": target is not None}
    for option, is_given in fitted.items():
        if is_given != (model is not None):
            rule = "goes with --model; set keys of a RECIPE with --set" if recipe else "is needed"
            raise InputError(option, "given" if is_given else "(nothing)", rule)
