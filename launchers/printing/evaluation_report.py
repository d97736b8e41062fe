"""What evaluations print: progress while they run, and tables of methods by lengths."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.table import Table

from launchers.printing.tables import print_table
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
        print_table(_perplexity_table(of_kind.perplexity))
    for task in dict.fromkeys(row.task for row in of_kind.retrieval):
        own = [row for row in of_kind.retrieval if row.task == task]
        print_table(_retrieval_table(task, own))


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the numbers that `print_tables` shows, unrounded, one row per method and length."""
    of_kind = EvaluationRows.of(rows)
    whole = aggregate(of_kind.perplexity, _series)
    quarter = aggregate(of_kind.perplexity, _series, last_quarter=True)
    found: list[dict[str, Any]] = [
        {
            "method": method,
            "length": length,
            "perplexity": perplexity,
            "last_quarter_perplexity": quarter[method, length],
        }
        for (method, length), perplexity in whole.items()
    ]
    for (task, method, length), (correct, trials) in _exact_matches(of_kind.retrieval).items():
        found.append(
            {
                "task": task,
                "method": method,
                "length": length,
                "correct": correct,
                "trials": trials,
                "accuracy": correct / trials,
            }
        )
    return found


def _series(row: PerplexityRow) -> tuple[str, int]:
    return row.method, row.length


def _exact_matches(
    rows: Sequence[RetrievalRow],
) -> dict[tuple[str, str, int], tuple[int, int]]:
    """Returns correct answers and trials over all depths, by task, method and length."""
    counts: dict[tuple[str, str, int], tuple[int, int]] = {}
    for row in rows:
        key = (row.task, row.method, row.length)
        correct, trials = counts.get(key, (0, 0))
        counts[key] = (correct + row.correct, trials + row.trials)
    return counts


def _perplexity_table(rows: Sequence[PerplexityRow]) -> Table:
    """Returns the table of perplexities over all documents."""
    whole, quarter = aggregate(rows, _series), aggregate(rows, _series, last_quarter=True)
    cells = {key: f"{whole[key]:.4f} ({quarter[key]:.4f})" for key in whole}
    return _table("Perplexity by tokens of context (in brackets: over the last quarter)", cells)


def _retrieval_table(task: str, rows: Sequence[RetrievalRow]) -> Table:
    """Returns the table of exact matches of one task, over all depths."""
    cells = {
        (method, length): f"{correct}/{trials} ({100 * correct / trials:.0f} %)"
        for (_, method, length), (correct, trials) in _exact_matches(rows).items()
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
