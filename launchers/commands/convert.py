"""`longrope convert import | export | verify`: Hugging Face, GGUF and Megatron checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launchers.options import LENGTH, json_option, write_json
from launchers.printing.progress import ProgressLines
from megatron_longrope.errors import EXIT_FAILED, InputError

if TYPE_CHECKING:  # these import torch, which `--help` does without
    from checkpoints_tools.hf.importing import Conversion
    from checkpoints_tools.serving import ServingTarget
    from checkpoints_tools.verify import Comparison

_FOLDER = click.Path(path_type=Path)
_processes = click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that write files of the target side by side.",
)
_replace = click.option(
    "--replace",
    is_flag=True,
    help="Overwrite a model that is at the target; without it that is refused.",
)


@click.group()
def command() -> None:
    """Convert between Hugging Face, GGUF and Megatron checkpoints, and compare them bit for bit."""


@command.command("import")
@click.argument("source", type=_FOLDER, metavar="HF_DIR|FILE.gguf")
@click.argument("megatron_dir", type=_FOLDER)
@click.option(
    "--sliding-window",
    type=click.Choice(["keep", "off"]),
    default="keep",
    show_default=True,
    help="For models with sliding-window layers. keep: as in the config. off: every layer attends "
    "to everything before it, and exports say so.",
)
@click.option(
    "--dynamic-at",
    type=LENGTH,
    default=None,
    metavar="N",
    help="For models with rope_type dynamic, whose factors follow the length of the input: keep "
    "those for N tokens.",
)
@click.option(
    "--no-tokenizer",
    is_flag=True,
    help="For GGUF files: leave the tokenizer out, where its kind would be refused.",
)
@_replace
@_processes
@json_option
def import_command(
    source: Path,
    megatron_dir: Path,
    sliding_window: str,
    dynamic_at: int | None,
    no_tokenizer: bool,
    replace: bool,
    processes: int,
    json_path: Path | None,
) -> None:
    """Convert a Hugging Face folder or a GGUF file to a Megatron checkpoint.

    The checkpoint is written to MEGATRON_DIR, in the number format that the source has; quantized
    blocks of a GGUF file become the float32 numbers they stand for. Interrupted, the same command
    goes on where it stopped.
    """
    from checkpoints_tools.gguf.header import is_gguf
    from checkpoints_tools.gguf.importing import import_gguf
    from checkpoints_tools.hf.importing import import_hf
    from megatron_longrope.runtime import start_runtime

    is_file = is_gguf(source) or source.suffix == ".gguf"
    if no_tokenizer and not is_file:
        raise InputError("--no-tokenizer", source, "goes with GGUF files")
    if is_file and (sliding_window == "off" or dynamic_at):
        field = "--dynamic-at" if dynamic_at else "--sliding-window"
        raise InputError(
            field, source, "goes with Hugging Face folders; GGUF files of Llamas have neither"
        )
    with start_runtime() as runtime:
        progress = ProgressLines(runtime.is_main).bytes_counter()
        if is_file:
            done = import_gguf(
                source,
                megatron_dir,
                runtime,
                tokenizer=not no_tokenizer,
                replace=replace,
                processes=processes,
                progress=progress,
            )
        else:
            done = import_hf(
                source,
                megatron_dir,
                runtime,
                keep_windows=sliding_window == "keep",
                dynamic_length=dynamic_at,
                replace=replace,
                processes=processes,
                progress=progress,
            )
        _report(done, json_path)


@command.command("export")
@click.argument("megatron_dir", type=_FOLDER)
@click.argument("target", type=_FOLDER, metavar="HF_DIR|FILE.gguf")
@click.option(
    "--factors",
    "factors_name",
    metavar="NAME|FILE",
    help="Published factor set or factors JSON file to export with  [default: the factors the "
    "checkpoint holds]",
)
@click.option(
    "--serve",
    type=click.Choice(["transformers", "static", "gguf"]),
    default="transformers",
    show_default=True,
    help="What will load the model. transformers: one factor set for short inputs and one for long "
    "ones. static: one set for all, for engines that choose once. gguf: a file for llama.cpp. See "
    "docs/serving.md.",
)
@click.option(
    "--length",
    type=LENGTH,
    default=None,
    metavar="N",
    help="Export the factor set for inputs of N tokens, where the model has several.",
)
@click.option(
    "--no-tokenizer",
    is_flag=True,
    help="For --serve gguf: leave the tokenizer out, where its kind would be refused.",
)
@_replace
@_processes
@json_option
def export_command(
    megatron_dir: Path,
    target: Path,
    factors_name: str | None,
    serve: ServingTarget,
    length: int | None,
    no_tokenizer: bool,
    replace: bool,
    processes: int,
    json_path: Path | None,
) -> None:
    """Convert a Megatron checkpoint to a Hugging Face folder or a GGUF file.

    MEGATRON_DIR may also be a checkpoint of Megatron-LM itself. Factors that the target format
    cannot say are refused. Interrupted, the same command goes on where it stopped; a GGUF file is
    begun anew.
    """
    from checkpoints_tools.gguf.exporting import export_gguf
    from checkpoints_tools.hf.exporting import export_hf
    from checkpoints_tools.serving import end_token_note, engine_notes, rounding_note, serving_set
    from megatron_longrope.model.checkpoints.checkpoint import hf_folder, read_description
    from megatron_longrope.rope import resolve_factors

    if no_tokenizer and serve != "gguf":
        raise InputError("--no-tokenizer", serve, "goes with --serve gguf")
    if processes > 1 and serve == "gguf":
        raise InputError("--processes", processes, "a GGUF file is written by one")
    own = read_description(megatron_dir).factor_set
    given = own
    if factors_name is not None:
        given = resolve_factors(factors_name, "--factors", own.geometry)
    factors, left_out = serving_set(given, serve, length)
    for words in left_out:
        click.echo(f"left out: {words}")
    progress = ProgressLines(True).bytes_counter()
    if serve == "gguf":
        done = export_gguf(
            megatron_dir,
            target,
            factors,
            tokenizer=not no_tokenizer,
            replace=replace,
            progress=progress,
        )
        notes = rounding_note(factors) + end_token_note(hf_folder(megatron_dir))
    else:
        done = export_hf(
            megatron_dir,
            target,
            factors,
            static=serve == "static",
            replace=replace,
            processes=processes,
            progress=progress,
        )
        notes = engine_notes(target)
    _report(done, json_path)
    for words in notes:
        click.echo(f"note: {words}")


@command.command("verify")
@click.argument("a", type=_FOLDER)
@click.argument("b", type=_FOLDER)
@click.option(
    "--logits", is_flag=True, help="Also run both models on the same random tokens, in float32."
)
@click.option(
    "--tokens",
    type=LENGTH,
    default=None,
    metavar="N",
    help="Random tokens for --logits  [default: 256]",
)
@click.option(
    "--all",
    "show_all",
    is_flag=True,
    help="Show all tensors, not only those that differ.",
)
@json_option
@click.pass_context
def verify_command(
    ctx: click.Context,
    a: Path,
    b: Path,
    logits: bool,
    tokens: int | None,
    show_all: bool,
    json_path: Path | None,
) -> None:
    """Compare two models tensor by tensor.

    Each of A and B is a Hugging Face folder, a Megatron checkpoint, a GGUF file or a run directory.
    The exit code is 0 if they are equal in every bit, 1 if they are not, and 2 if one is damaged or
    no model. Files beside the weights are compared too, but do not count for the exit code.
    """
    from checkpoints_tools.common.verify_files import compare_files
    from checkpoints_tools.verify import LOGITS_TOKENS, all_equal, counts, verify
    from megatron_longrope.runtime import start_runtime

    if tokens is not None and not logits:
        raise InputError("--tokens", tokens, "goes with --logits")
    if logits:
        with start_runtime() as runtime:
            rows = verify(a, b, logits=True, runtime=runtime, tokens=tokens or LOGITS_TOKENS)
    else:
        rows = verify(a, b)
    found, equal, files = counts(rows), all_equal(rows), compare_files(a, b)
    _print_table([row for row in rows if show_all or not row.equal or row.name.startswith("(")])
    said = ", ".join(f"{number} {verdict}" for verdict, number in found.items() if number)
    click.echo(f"{'equal' if equal else 'not equal'}: {len(rows)} rows, {said}")
    if files:
        others = [
            f"{verdict}: {', '.join(names)}"
            for verdict, names in files.items()
            if names and verdict != "equal"
        ]
        click.echo("; ".join([f"beside the weights: {len(files['equal'])} files equal", *others]))
    if json_path is not None:
        listed = [asdict(row) | {"verdict": row.verdict} for row in rows]
        write_json(
            json_path,
            {
                "equal": equal,
                "a": str(a),
                "b": str(b),
                "counts": found,
                "files": files,
                "rows": listed,
            },
        )
    ctx.exit(0 if equal else EXIT_FAILED)


def _report(done: Conversion, json_path: Path | None) -> None:
    click.echo(
        f"{done.target}: {done.num_tensors} tensors, {done.num_bytes / 1e6:.1f} MB of {done.dtype}"
    )
    if done.left_out:
        click.echo(f"left out, as they are computed or stored twice: {', '.join(done.left_out)}")
    if done.stayed_behind:
        click.echo(f"not carried along: {', '.join(done.stayed_behind)}")
    if json_path is not None:
        write_json(json_path, asdict(done))


def _print_table(rows: list[Comparison]) -> None:
    from rich import box
    from rich.table import Table

    from launchers.printing.tables import print_table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("tensor", overflow="fold")
    for heading in ("A", "B"):
        table.add_column(heading, overflow="fold")
    table.add_column("verdict")
    table.add_column("max abs diff", justify="right", no_wrap=True)
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.3g}"
        b = "" if row.b == row.a else row.b
        table.add_row(row.name, row.a, b, row.verdict, difference)
    print_table(table)
