"""What `longrope extend --dry-run` prints: every stage with what it reads, leaves and costs."""

from __future__ import annotations

import click
from rich import box
from rich.table import Table

from launchers.tables import print_table
from megatron_longrope.pipeline.corpus import Corpus
from megatron_longrope.pipeline.extend import CheckedRun
from megatron_longrope.pipeline.stages.stage import Cost, Stage

_WIDTH_OF_A_FILE = 180
"""Columns where the table goes into a file or a pipe, which have no width."""


def print_stages(checked: CheckedRun) -> None:
    """Prints documents and stages, in order, and what all of them cost."""
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
    click.echo("All at most: searches as if no candidate were stopped early, rows as if full.")
    click.echo("Checked so far as can be without weights; nothing was run.")


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
    """Three digits and the unit they are in, by thousands: `1.25 M`."""
    place = 0
    while count >= 999.5 and place < len(units) - 1:
        count, place = count / 1000, place + 1
    return f"{count:.3g}{units[place]}"
