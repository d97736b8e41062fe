"""`longrope convert import | export | verify`: Hugging Face folders, Megatron checkpoints, the proof of equality."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launchers.options import LENGTH, json_option, write_json
from launchers.progress import ProgressLines
from megatron_longrope.errors import EXIT_FAILED

if TYPE_CHECKING:  # these import torch, which `--help` does without
    from checkpoints_tools.import_hf import Conversion
    from checkpoints_tools.verify import Comparison

_FOLDER = click.Path(path_type=Path)
_processes = click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                          help="Processes that work on files of the target side by side.")  # fmt: skip


@click.group()
def command() -> None:
    """Convert between Hugging Face and Megatron checkpoints without losing a bit, and prove it."""


@command.command("import")
@click.argument("hf_dir", type=_FOLDER)
@click.argument("megatron_dir", type=_FOLDER)
@click.option("--sliding-window", type=click.Choice(["keep", "off"]), default="keep", show_default=True,
              help="off: every layer attends to everything before it, and exports say so.")  # fmt: skip
@click.option("--dynamic-at", type=LENGTH, default=None, metavar="N",
              help="rope_type dynamic only: fix its factors, which follow the input, at N tokens.")  # fmt: skip
@_processes
@json_option
def import_command(
    hf_dir: Path,
    megatron_dir: Path,
    sliding_window: str,
    dynamic_at: int | None,
    processes: int,
    json_path: Path | None,
) -> None:
    """Write the Megatron checkpoint MEGATRON_DIR of the Hugging Face folder HF_DIR, in the dtype it has.

    Interrupted, the same command goes on where it was.
    """
    from checkpoints_tools.import_hf import import_hf
    from megatron_longrope.runtime import start_runtime

    with start_runtime() as runtime:
        done = import_hf(hf_dir, megatron_dir, runtime, keep_windows=sliding_window == "keep",
                         dynamic_length=dynamic_at, processes=processes,
                         progress=ProgressLines(runtime.is_main).bytes_counter())  # fmt: skip
        _report(done, json_path)


@command.command("export")
@click.argument("megatron_dir", type=_FOLDER)
@click.argument("hf_dir", type=_FOLDER)
@click.option("--factors", "factors_path", type=_FOLDER, metavar="FILE",
              help="A factors JSON file to export with, instead of the factors the checkpoint holds.")  # fmt: skip
@_processes
@json_option
def export_command(
    megatron_dir: Path, hf_dir: Path, factors_path: Path | None, processes: int, json_path: Path | None
) -> None:
    """Write the Hugging Face folder HF_DIR of the checkpoint MEGATRON_DIR; refuse what its config cannot carry.

    MEGATRON_DIR may be Megatron-LM's own. Interrupted, the same command goes on where it was.
    """
    from checkpoints_tools.export_hf import export_hf
    from megatron_longrope.rope import read_factors

    factors = read_factors(factors_path) if factors_path is not None else None
    done = export_hf(megatron_dir, hf_dir, factors, processes=processes,
                     progress=ProgressLines(True).bytes_counter())  # fmt: skip
    _report(done, json_path)


@command.command("verify")
@click.argument("a", type=_FOLDER)
@click.argument("b", type=_FOLDER)
@click.option("--logits", is_flag=True, help="Also run both on the same tokens, in float32.")
@json_option
@click.pass_context
def verify_command(ctx: click.Context, a: Path, b: Path, logits: bool, json_path: Path | None) -> None:
    """Compare two models, each an HF folder or a Megatron checkpoint; exit code 0: equal in every bit, else 1."""
    from checkpoints_tools.verify import all_equal, verify
    from megatron_longrope.runtime import start_runtime

    if logits:
        with start_runtime() as runtime:
            rows = verify(a, b, logits=True, runtime=runtime)
    else:
        rows = verify(a, b)
    equal = all_equal(rows)
    _print_table(rows)
    differing = sum(not row.equal for row in rows)
    click.echo(f"equal: {len(rows)} rows" if equal else f"not equal: {differing} of {len(rows)} rows differ")
    if json_path is not None:
        write_json(json_path, {"equal": equal, "a": str(a), "b": str(b), "rows": [asdict(row) for row in rows]})
    ctx.exit(0 if equal else EXIT_FAILED)


def _report(done: Conversion, json_path: Path | None) -> None:
    click.echo(f"{done.target}: {done.num_tensors} tensors, {done.num_bytes / 1e6:.1f} MB of {done.dtype}")
    if done.left_out:
        click.echo(f"left out, as they are computed or stored twice: {', '.join(done.left_out)}")
    if json_path is not None:
        write_json(json_path, asdict(done))


def _print_table(rows: list[Comparison]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("tensor", overflow="fold")
    for heading in ("A", "B"):
        table.add_column(heading, overflow="fold")
    table.add_column("equal")
    table.add_column("max abs diff", justify="right", no_wrap=True)
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.3g}"
        b = "" if row.b == row.a else row.b
        table.add_row(row.name, row.a, b, "yes" if row.equal else "NO", difference)
    Console(highlight=False).print(table)
