"""The table of perplexities, methods by lengths, in the form that the page shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope.artifacts.records import as_record
from megatron_longrope.artifacts.rows import PerplexityRow
from megatron_longrope.config import format_length
from megatron_longrope.report.aggregate import PerplexityGrid, Series, perplexity_grid
from megatron_longrope.report.style import Look, model_name, series_look


@dataclass(frozen=True)
class Cell:
    """One perplexity of a table."""

    value: float | None
    """The exact value; None where nothing was scored."""
    text: str
    is_best: bool
    """Whether no other method of the model has less at this length."""


@dataclass(frozen=True)
class TableRow:
    """One method with one attention factor; its cells are in the order of the table's lengths."""

    series: Series
    look: Look
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PerplexityTable:
    """Perplexities of all series by length."""

    lengths: tuple[int, ...]
    """Lengths in tokens, ascending."""
    groups: tuple[tuple[str, tuple[TableRow, ...]], ...]
    """Heading and rows of each model and protocol, in reading order."""


def perplexity_table(grid: PerplexityGrid) -> PerplexityTable:
    """Returns the table of a grid, with the best of each model and protocol at each length marked.

    Values that are written like the lowest are marked with it. Where all are written alike, none
    is.
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
    """Returns the grid of rows given as JSON values; rows that name no model are of `model`.

    Raises InputError for a wrong row.
    """
    records = (
        as_record({"model": model, **row}, PerplexityRow, Path("rows"), f"row {i}")
        for i, row in enumerate(rows)
    )
    return perplexity_grid(records)


def format_perplexity(value: float | None) -> str:
    """Returns a perplexity as text: fewer digits the larger it is, and a dash for None.

    >>> format_perplexity(16.754), format_perplexity(2345.6), format_perplexity(None)
    ('16.75', '2,346', '–')
    """
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
    """Returns the lowest perplexity as written; None where all perplexities are written alike."""
    values = [grid.value(series, length) for series in members]
    present = [value for value in values if value is not None]
    texts = {format_perplexity(value) for value in present}
    return format_perplexity(min(present)) if len(texts) > 1 else None
