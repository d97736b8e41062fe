"""Retrieval accuracy as a grid of length × depth, ready for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_longrope.report.aggregate import RetrievalGrid, Series
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
    """One model's grid of one task: columns are lengths, rows depths; `beyond` is the first column
    past the window."""

    title: str
    lengths: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    means: tuple[HeatCell, ...]
    beyond: int | None


def heat_maps(
    tasks: Mapping[str, Mapping[Series, RetrievalGrid]], window: int | None
) -> dict[str, list[HeatMap]]:
    """Returns per task a map per series; those of a task have the same lengths and depths so that
    they can be read side by side."""
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
