"""Tables on a terminal and in a file: no column or digit is cut, and tab-separated on demand."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from megatron_longrope.atomic import replacing
from megatron_longrope.errors import InputError

if TYPE_CHECKING:  # these import torch, which `--help` does without
    from megatron_longrope.pipeline.corpus import Corpus
    from megatron_longrope.pipeline.extend import CheckedRun
    from megatron_longrope.pipeline.stages.stage import Cost, Stage

CallableT = TypeVar("CallableT", bound=Callable[..., Any])
_WIDTH_OF_A_FILE = 180
"""Columns of the table in a file or a pipe, which have no width of their own."""
_MOST = 10_000
"""More columns than any table here needs."""


def print_table(table: Table, *, width_of_a_file: int | None = None) -> None:
    """Prints a table of which nothing is cut, as rich would at 80 columns without a terminal.

    Without a terminal the table is as wide as its longest rows, or `width_of_a_file` columns where
    its cells fold. On a terminal it is as wide as that, or wider where a word would not fit.
    """
    console = Console(highlight=False)
    needed = Measurement.get(console, console.options.update(max_width=_MOST), table)
    width = console.width if console.is_terminal else width_of_a_file or needed.maximum
    Console(highlight=False, width=max(width, needed.minimum)).print(table)


def tsv_option(command: CallableT) -> CallableT:
    """Adds `--tsv FILE|-`, passed as `tsv: str | None`; `write_tsv` writes it."""
    return click.option(
        "--tsv",
        metavar="FILE|-",
        callback=_checked_target,
        help="Write the table tab-separated, all digits; -: on stdout, instead of the table.",
    )(command)


def write_tsv(target: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows tab-separated, under a line of their keys, to a file or to stdout (`-`).

    None becomes an empty cell. Raises InputError where the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow(dict.fromkeys(key for row in rows for key in row))
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    if target == "-":
        sys.stdout.write(text.getvalue())
        return
    try:
        with replacing(Path(target)) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise InputError("--tsv", target, f"cannot be written: {error.strerror}") from error


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return str(value)


def _checked_target(ctx: click.Context, param: click.Parameter, target: str | None) -> str | None:
    if target not in (None, "-") and not Path(target or "").absolute().parent.is_dir():
        raise InputError("--tsv", target, "its folder does not exist")
    return target


def print_stages(checked: CheckedRun) -> None:
    """Prints the documents, and the stages in order with their cost and the sum of it."""
    click.echo(_documents(checked.corpus))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    stages = checked.stages
    table.add_column("stage", "in all", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("weights", no_wrap=True)
    table.add_column("reads → leaves", overflow="fold")
    for heading, total in (
        ("evaluations", ""),
        ("tokens", _tokens(sum(stage.cost.tokens for stage in stages))),
        ("backward", _tokens(sum(stage.cost.backward_tokens for stage in stages))),
        ("operations", _flops(sum(stage.cost.flops for stage in stages))),
    ):
        table.add_column(heading, total, justify="right", no_wrap=True)
    for stage in stages:
        table.add_row(*_row(stage))
    print_table(table, width_of_a_file=_WIDTH_OF_A_FILE)
    click.echo(
        "weights: the checkpoint a stage loads. tokens: forward through the model; backward: those "
        "of them that are trained on or searched by gradients. operations: floating-point, in all."
    )
    click.echo(
        "Numbers are upper bounds: as if no candidate were stopped early and every row were full."
    )
    click.echo(
        "Everything that can be checked without weights is in order. Nothing was run; the same "
        "command without --dry-run runs all stages."
    )


def _row(stage: Stage) -> tuple[str, ...]:
    cost: Cost = stage.cost
    return (
        stage.name,
        stage.does,
        stage.checkpoint or "",
        f"{', '.join(stage.inputs) or '-'} → {', '.join(stage.outputs)}",
        "" if cost.evaluations is None else f"{cost.evaluations:,}",
        _tokens(cost.tokens),
        _tokens(cost.backward_tokens),
        _flops(cost.flops),
    )


def _documents(corpus: Corpus) -> str:
    train = sum(len(document.tokens) for document in corpus.train)
    return (
        f"documents: {len(corpus.train)} to train on ({_tokens(train)} tokens), "
        f"{len(corpus.search)} to search on, {len(corpus.held_out)} held out"
    )


def _tokens(count: int) -> str:
    return _with_unit(count, ("", " k", " M", " G", " T")) if count else ""


def _flops(count: float) -> str:
    units = (" FLOP", " kFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP", " EFLOP", " ZFLOP")
    return _with_unit(count, units) if count else ""


def _with_unit(count: float, units: tuple[str, ...]) -> str:
    """Returns three digits and their unit, by thousands: `1.25 M`."""
    place = 0
    while count >= 999.5 and place < len(units) - 1:
        count, place = count / 1000, place + 1
    return f"{count:.3g}{units[place]}"
