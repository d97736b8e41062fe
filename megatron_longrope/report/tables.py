"""Perplexity tables, method × length: one structure behind the page, the terminal and plain
text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from megatron_longrope.artifacts.records import as_record
from megatron_longrope.artifacts.rows import PerplexityRow
from megatron_longrope.config import format_length
from megatron_longrope.report.aggregate import PerplexityGrid, Series, perplexity_grid
from megatron_longrope.report.style import Look, model_name, series_look

HEADINGS = ("model", "method", "attention factor")


@dataclass(frozen=True)
class Cell:
    """One perplexity: the exact value (None: not scored), its text, and whether it is the lowest of
    its model there."""

    value: float | None
    text: str
    is_best: bool


@dataclass(frozen=True)
class TableRow:
    """One method with one attention factor, cells in the order of the table's lengths."""

    series: Series
    look: Look
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PerplexityTable:
    """Rows by model, in reading order; `lengths` in tokens."""

    lengths: tuple[int, ...]
    groups: tuple[tuple[str, tuple[TableRow, ...]], ...]


def perplexity_table(grid: PerplexityGrid) -> PerplexityTable:
    """Returns the table of a grid; the lowest of each model and protocol at each length is marked.

    What reads the same as the lowest is marked with it, and nothing is where all of them read the
    same.
    """
    lengths = tuple(grid.lengths)
    groups = []
    for model, sliding in grid.groups:
        members = grid.of_group(model, sliding)
        best = {length: _best_text(grid, members, length) for length in lengths}
        suffix = (
            f" · window {format_length(sliding[0])}, stride {format_length(sliding[1])}"
            if sliding
            else ""
        )
        groups.append(
            (model_name(model) + suffix, tuple(_row(grid, s, lengths, best) for s in members))
        )
    return PerplexityTable(lengths, tuple(groups))


def grid_of_rows(rows: Iterable[Mapping[str, Any]], model: str = "base") -> PerplexityGrid:
    """Returns the grid of plain JSON rows; rows that name no model are of `model`. Raises
    InputError on a wrong row."""
    records = (
        as_record({"model": model, **row}, PerplexityRow, Path("rows"), f"row {i}")
        for i, row in enumerate(rows)
    )
    return perplexity_grid(records)


def rich_perplexity_table(
    grid: PerplexityGrid, title: str = "Perplexity by context length"
) -> Table:
    """Returns the table for a terminal; the best of each model and length is bold."""
    table = perplexity_table(grid)
    shown = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        shown.add_column(heading)
    for length in table.lengths:
        shown.add_column(format_length(length), justify="right")
    for model, rows in table.groups:
        for index, row in enumerate(rows):
            texts = [Text(cell.text, style="bold" if cell.is_best else "") for cell in row.cells]
            shown.add_row(
                Text(model if index == 0 else ""),
                Text(row.look.label),
                Text(row.series.attention_factor),
                *texts,
            )
        shown.add_section()
    return shown


def plain_perplexity_table(grid: PerplexityGrid) -> str:
    """Returns the table as aligned text for logs and files; the best of each model and length has
    an asterisk."""
    table = perplexity_table(grid)
    lines = [[*HEADINGS, *(format_length(length) + " " for length in table.lengths)]]
    for model, rows in table.groups:
        for row in rows:
            cells = [cell.text + ("*" if cell.is_best else " ") for cell in row.cells]
            lines.append([model, row.look.label, row.series.attention_factor, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(_aligned(line, widths) for line in lines)


def format_perplexity(value: float | None) -> str:
    """Returns 2 decimals, none from 1000 on, a power of ten from a million on; a dash for what was
    not scored."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def _row(
    grid: PerplexityGrid, series: Series, lengths: tuple[int, ...], best: Mapping[int, str | None]
) -> TableRow:
    values = [(grid.value(series, length), best[length]) for length in lengths]
    cells = tuple(
        Cell(value, format_perplexity(value), format_perplexity(value) == low)
        for value, low in values
    )
    return TableRow(series, series_look(series), cells)


def _best_text(grid: PerplexityGrid, members: list[Series], length: int) -> str | None:
    """The lowest perplexity as written, None where all that is there is written alike."""
    values = [grid.value(series, length) for series in members]
    present = [value for value in values if value is not None]
    texts = {format_perplexity(value) for value in present}
    return format_perplexity(min(present)) if len(texts) > 1 else None


def _aligned(line: list[str], widths: list[int]) -> str:
    pairs = list(zip(line, widths, strict=True))
    left = [text.ljust(width) for text, width in pairs[: len(HEADINGS)]]
    return "  ".join(left + [text.rjust(width) for text, width in pairs[len(HEADINGS) :]]).rstrip()
