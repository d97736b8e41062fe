"""The table of `longrope extend --dry-run`: each stage with what it reads, leaves and costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Table

from launchers.printing.tables import print_table
from megatron_longrope.pipeline.corpus import Corpus
from megatron_longrope.pipeline.extend import CheckedRun
from megatron_longrope.pipeline.stages.stage import Cost, Stage

_WIDTH_OF_A_FILE = 180
"""Columns of the table in a file or a pipe, which have no width of their own."""

_WIDTH_OF_ALL_COLUMNS = 130
"""Columns of a terminal from which on the whole table can be read."""

_COLUMNS = (
    *("stage", "what", "weights", "reads → leaves"),
    *("evaluations", "tokens", "backward", "operations"),
)
_NARROW_COLUMNS = ("stage", "what", "tokens", "operations")


def print_stages(checked: CheckedRun) -> None:
    """Prints the documents, and the stages in order with their cost and the sum of it."""
    click.echo(_documents(checked.corpus))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    table = _table(checked.stages, console.width >= _WIDTH_OF_ALL_COLUMNS)
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


def _table(stages: Sequence[Stage], is_wide: bool) -> Table:
    """Returns one row per stage, in a narrow terminal without files, weights and parts of cost.

    All columns in 80 characters would leave none of them for what a stage does.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    sums = {
        "tokens": _tokens(sum(stage.cost.tokens for stage in stages)),
        "backward": _tokens(sum(stage.cost.backward_tokens for stage in stages)),
        "operations": _flops(sum(stage.cost.flops for stage in stages)),
    }
    shown = [at for at, name in enumerate(_COLUMNS) if is_wide or name in _NARROW_COLUMNS]
    for name in (_COLUMNS[at] for at in shown):
        is_text = name in ("what", "reads → leaves")
        table.add_column(
            name,
            "in all" if name == "stage" else sums.get(name, ""),
            justify="right" if name == "evaluations" or name in sums else "left",
            no_wrap=not is_text,
            overflow="fold" if is_text else "ellipsis",
        )
    for stage in stages:
        row = _row(stage)
        table.add_row(*(row[at] for at in shown))
    return table


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
        + "".join(f"\nnote: {note}" for note in corpus.notes)
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
