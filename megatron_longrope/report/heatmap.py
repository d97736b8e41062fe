"""Passkey accuracy as a grid of length × depth, ready for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_longrope.report.aggregate import Series
from megatron_longrope.report.style import method_look, model_name, short_length


@dataclass(frozen=True)
class HeatCell:
    """Exact matches over trials; `share` in [0, 1], None where nothing was tried."""

    correct: int
    trials: int

    @property
    def share(self) -> float | None:
        """Accuracy in [0, 1]."""
        return self.correct / self.trials if self.trials else None


@dataclass(frozen=True)
class HeatMap:
    """One model's passkey grid: columns are lengths, rows depths; `beyond` is the first column past
    the window."""

    title: str
    lengths: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    means: tuple[HeatCell, ...]
    beyond: int | None


def heat_maps(
    grids: Mapping[Series, Mapping[tuple[int, float], tuple[int, int]]], window: int | None
) -> list[HeatMap]:
    """Returns a map per series, all with the same lengths and depths so that they can be read side
    by side."""
    keys = {key for grid in grids.values() for key in grid}
    lengths, depths = sorted({n for n, _ in keys}), sorted({depth for _, depth in keys})
    beyond = next((i for i, n in enumerate(lengths) if window and n > window), None)
    return [_heat_map(series, grid, lengths, depths, beyond) for series, grid in grids.items()]


def _heat_map(
    series: Series,
    grid: Mapping[tuple[int, float], tuple[int, int]],
    lengths: list[int],
    depths: list[float],
    beyond: int | None,
) -> HeatMap:
    def cell(length: int, depth: float) -> HeatCell:
        return HeatCell(*grid.get((length, depth), (0, 0)))

    rows = tuple(
        (f"{100 * depth:.0f} %", tuple(cell(n, depth) for n in lengths)) for depth in depths
    )
    means = tuple(_sum([cell(n, depth) for depth in depths]) for n in lengths)
    return HeatMap(
        f"{model_name(series.model)} · {method_look(series.method).label}",
        tuple(short_length(n) for n in lengths),
        rows,
        means,
        beyond,
    )


def _sum(cells: list[HeatCell]) -> HeatCell:
    return HeatCell(sum(cell.correct for cell in cells), sum(cell.trials for cell in cells))
