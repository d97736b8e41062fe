"""What evaluations print: progress while they run, and tables of methods by lengths."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import click
from rich.console import Console
from rich.table import Table

from megatron_longrope.artifacts.results import EvaluationRows, aggregate
from megatron_longrope.artifacts.rows import PerplexityRow, RetrievalRow, Row
from megatron_longrope.config import format_length
from megatron_longrope.evaluation.tasks import TASKS


class TokenProgress:
    """Writes a line on stderr for each finished part of the work, with rate and time left."""

    def __init__(self, total_tokens: int, *, shown: bool) -> None:
        self.total_tokens, self.done_tokens = total_tokens, 0
        self.shown = shown
        self._start = time.monotonic()

    def advance(self, tokens: int, what: str) -> None:
        """Counts `tokens` as done and prints what was done, tokens per second and time left."""
        self.done_tokens += tokens
        rate = self.done_tokens / max(time.monotonic() - self._start, 1e-9)
        left = (self.total_tokens - self.done_tokens) / rate
        if self.shown:
            done = f"{100 * self.done_tokens / self.total_tokens:.0f} %"
            click.echo(f"{done:>5}  {what}, {rate:,.0f} tokens/s, {left:.0f} s left", err=True)


def print_tables(rows: Sequence[Row]) -> None:
    """Prints one table of perplexities, if there are any, and one of exact matches per task."""
    of_kind = EvaluationRows.of(rows)
    if of_kind.perplexity:
        Console().print(_perplexity_table(of_kind.perplexity))
    for task in dict.fromkeys(row.task for row in of_kind.retrieval):
        own = [row for row in of_kind.retrieval if row.task == task]
        Console().print(_retrieval_table(task, own))


def _perplexity_table(rows: Sequence[PerplexityRow]) -> Table:
    """Returns the table of perplexities over all documents."""
    whole = aggregate(rows, lambda row: (row.method, row.length))
    quarter = aggregate(rows, lambda row: (row.method, row.length), last_quarter=True)
    cells = {key: f"{whole[key]:.4f} ({quarter[key]:.4f})" for key in whole}
    return _table("Perplexity by tokens of context (in brackets: over the last quarter)", cells)


def _retrieval_table(task: str, rows: Sequence[RetrievalRow]) -> Table:
    """Returns the table of exact matches of one task, over all depths."""
    counts: dict[tuple[str, int], tuple[int, int]] = {}
    for row in rows:
        correct, trials = counts.get((row.method, row.length), (0, 0))
        counts[row.method, row.length] = (correct + row.correct, trials + row.trials)
    cells = {
        key: f"{correct}/{trials} ({100 * correct / trials:.0f} %)"
        for key, (correct, trials) in counts.items()
    }
    return _table(f"{TASKS[task].title}, exact match over all depths", cells)


def _table(title: str, cells: Mapping[tuple[str, int], str]) -> Table:
    """Returns a table of methods by lengths in tokens, both in the order of appearance."""
    table, lengths = Table(title=title), list(dict.fromkeys(length for _, length in cells))
    table.add_column("method")
    for length in lengths:
        table.add_column(format_length(length), justify="right")
    for method in dict.fromkeys(method for method, _ in cells):
        table.add_row(method, *(cells[method, length] for length in lengths))
    return table
