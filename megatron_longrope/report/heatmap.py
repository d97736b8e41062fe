"""Retrieval accuracy as a grid of lengths and depths, in the form that the page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_longrope.report.aggregate import RetrievalGrid, Series
from megatron_longrope.report.style import method_look, model_name, short_length


@dataclass(frozen=True)
class HeatCell:
    """Exact matches and trials at one length and depth."""

    correct: int
    trials: int

    @property
    def share(self) -> float | None:
        """Accuracy in [0, 1]; None where nothing was tried."""
        return self.correct / self.trials if self.trials else None


@dataclass(frozen=True)
class HeatMap:
    """The grid of one series in one task: columns are lengths, rows are depths."""

    title: str
    lengths: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    """Depth and cells of each row."""
    means: tuple[HeatCell, ...]
    """Sums over all depths, by length."""
    beyond: int | None
    """Index of the first column beyond the pretrained window; None where there is none."""


def heat_maps(
    tasks: Mapping[str, Mapping[Series, RetrievalGrid]], window: int | None
) -> dict[str, list[HeatMap]]:
    """Returns the maps of all series, by task.

    All maps of a task have the same lengths and depths, so that they can be read side by side.
    """
    return {task: _maps_of_task(grids, window) for task, grids in tasks.items()}


def _maps_of_task(grids: Mapping[Series, RetrievalGrid], window: int | None) -> list[HeatMap]:
    keys = {key for grid in grids.values() for key in grid}
    lengths = sorted({n for n, _ in keys})
    depths = sorted({depth for _, depth in keys}, key=lambda depth: -1 if depth is None else depth)
    beyond = next((i for i, n in enumerate(lengths) if window and n > window), None)
    return [_heat_map(series, grid, lengths, depths, beyond) for series, grid in grids.items()]


def _heat_map(
    series: Series,
    grid: RetrievalGrid,
    lengths: list[int],
    depths: list[float | None],
    beyond: int | None,
) -> HeatMap:
    def cell(length: int, depth: float | None) -> HeatCell:
        return HeatCell(*grid.get((length, depth), (0, 0)))

    rows = tuple(
        ("any" if depth is None else f"{100 * depth:.0f} %", tuple(cell(n, depth) for n in lengths))
        for depth in depths
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
