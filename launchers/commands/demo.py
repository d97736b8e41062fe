"""`longrope demo`: the whole method on the embedded model, or a real small model under every
scaling method."""

from __future__ import annotations

import os
from pathlib import Path

import click

from launchers.options import LENGTH, json_option, set_option, write_json


@click.command()
@click.option(
    "--model",
    type=click.Choice(["demo", "smollm2"]),
    default="demo",
    help="demo: search, fine-tune, search further, recover, evaluate, export. "
    "smollm2: SmolLM2-135M from its PyPI package under every scaling method.",
)
@click.option(
    "--length",
    type=LENGTH,
    default="12k",
    metavar="LENGTH",
    help="Of the document SmolLM2 is evaluated on, in tokens; its window is 8k.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Where everything is kept  [default: runs/MODEL]",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=min(2, os.cpu_count() or 1),
    help="Data-parallel processes the demo is spread over; SmolLM2 uses one, with all cores.",
)
@set_option
@json_option
def command(
    model: str,
    length: int,
    run_dir: Path | None,
    processes: int,
    overrides: tuple[str, ...],
    json_path: Path | None,
) -> None:
    """Show the whole method in minutes on a laptop's CPU. Interrupted, the same command goes on."""
    directory = run_dir or Path("runs") / model
    if model == "demo" and processes > 1 and "RANK" not in os.environ:
        _spread(directory, processes, overrides, json_path)
    if model == "smollm2":
        from launchers.smollm2 import evaluate_smollm2

        evaluate_smollm2(directory, length, json_path)
        return
    from launchers.extension import named_recipe, run_extension

    result = run_extension(named_recipe("demo", overrides), directory)
    if result is not None and json_path is not None:
        write_json(json_path, {"run_dir": str(result.directory), "result": str(result.result_file)})


def _spread(
    directory: Path, processes: int, overrides: tuple[str, ...], json_path: Path | None
) -> None:
    """Becomes the same command on several processes."""
    from launchers.torchrun import TorchrunOptions, torchrun_job

    arguments = ["demo", "--run-dir", str(directory), "--processes", str(processes)]
    for override in overrides:
        arguments += ["--set", override]
    if json_path is not None:
        arguments += ["--json", str(json_path)]
    torchrun_job(TorchrunOptions(processes), arguments).replace_process()
