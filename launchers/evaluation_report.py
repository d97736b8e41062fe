"""What evaluations print: progress while they run, and a table of methods by lengths."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from megatron_longrope.config import format_length


class Progress:
    """Writes a line on stderr for each finished part of the work: tokens per second and time
    left."""

    def __init__(self, total_tokens: int, *, shown: bool) -> None:
        self.total_tokens, self.done_tokens = total_tokens, 0
        self.shown = shown
        self._start = time.monotonic()

    def advance(self, tokens: int, what: str) -> None:
        """Counts `tokens` as done and says so."""
        self.done_tokens += tokens
        rate = self.done_tokens / max(time.monotonic() - self._start, 1e-9)
        left = (self.total_tokens - self.done_tokens) / rate
        if self.shown:
            done = f"{100 * self.done_tokens / self.total_tokens:.0f} %"
            click.echo(f"{done:>5}  {what}, {rate:,.0f} tokens/s, {left:.0f} s left", err=True)


def perplexity_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints perplexity over all documents per method and length, with that of the last quarter
    beside it."""
    from megatron_longrope.evaluation import aggregate

    whole, quarter = aggregate(rows), aggregate(rows, last_quarter=True)
    table = _table("Perplexity (in brackets: over the last quarter of the context)", rows)
    for method in dict.fromkeys(row["method"] for row in rows):
        lengths = _lengths(rows)
        table.add_row(
            method, *(f"{whole[method, n]:.4f} ({quarter[method, n]:.4f})" for n in lengths)
        )
    Console().print(table)


def passkey_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the share of exact matches over all depths per method and length."""
    table = _table("Passkey retrieval, exact match over all depths", rows)
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for length in _lengths(rows):
            chosen = [row for row in rows if (row["method"], row["length"]) == (method, length)]
            correct, trials = (sum(row[key] for row in chosen) for key in ("correct", "trials"))
            cells.append(f"{correct}/{trials} ({100 * correct / trials:.0f} %)")
        table.add_row(method, *cells)
    Console().print(table)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title)
    table.add_column("method")
    for length in _lengths(rows):
        table.add_column(format_length(length), justify="right")
    return table


def _lengths(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return list(dict.fromkeys(row["length"] for row in rows))
