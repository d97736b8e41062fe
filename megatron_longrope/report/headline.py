"""The few numbers that a reader wants first, each beside what it is to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_longrope.artifacts.stages import StageRecord
from megatron_longrope.artifacts.summaries import Check
from megatron_longrope.report.aggregate import (
    PerplexityGrid,
    RetrievalGrid,
    Series,
    method_family,
)
from megatron_longrope.report.run_files import RunFiles
from megatron_longrope.report.style import heading, short_length
from megatron_longrope.report.tables import format_perplexity


@dataclass(frozen=True)
class Tile:
    """One key number of the page."""

    label: str
    value: str
    detail: str = ""
    tone: str = ""
    """Colours the tile: good, bad or empty."""


def tiles(
    run: RunFiles, grid: PerplexityGrid, retrieval: Mapping[str, Mapping[Series, RetrievalGrid]]
) -> list[Tile]:
    """Returns the tiles for which this run has the numbers."""
    window, target = run.original_length, run.target_length
    checks = run.result.checks if run.result else ()
    stages = run.result.stages if run.result else ()
    found = [
        _window_tile(window, target),
        _perplexity_tile(grid),
        _short_tile(grid, window),
        *(_retrieval_tile(task, grids) for task, grids in retrieval.items()),
        _checks_tile(checks),
        _time_tile(stages),
    ]
    return [tile for tile in found if tile is not None]


def duration(seconds: float) -> str:
    """Returns seconds as people write them.

    >>> duration(4.2), duration(185), duration(7620)
    ('4.2 s', '3 min 05 s', '2 h 07 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def _window_tile(window: int | None, target: int | None) -> Tile | None:
    if not window or not target:
        return None
    return Tile(
        "Context window",
        f"{short_length(window)} → {short_length(target)}",
        f"{target / window:g}× the original",
    )


def _perplexity_tile(grid: PerplexityGrid) -> Tile | None:
    extended = _main(grid, "extended")
    if extended is None:
        return None
    length = max(grid.cells[extended])
    base = _untouched(grid)
    untouched = grid.value(base, length) if base else None
    detail = (
        f"base model, no change: {format_perplexity(untouched)}" if untouched else "extended model"
    )
    return Tile(
        f"Perplexity at {short_length(length)}",
        format_perplexity(grid.value(extended, length)),
        detail,
    )


def _short_tile(grid: PerplexityGrid, window: int | None) -> Tile | None:
    """Returns how much the extended model lost on inputs that fit the original window."""
    extended, base = _main(grid, "extended"), _untouched(grid)
    if extended is None or base is None or window is None:
        return None
    short, reference = grid.value(extended, window), grid.value(base, window)
    if not short or not reference:
        return None
    change = 100 * (short / reference - 1)
    detail = f"perplexity {format_perplexity(short)}, was {format_perplexity(reference)}"
    return Tile(
        f"Short inputs ({short_length(window)})", f"{change:+.1f} %".replace("-", "−"), detail
    )


def _retrieval_tile(task: str, grids: Mapping[Series, RetrievalGrid]) -> Tile | None:
    series = next((s for s in grids if s.model == "extended"), None)
    if series is None:
        return None
    length = max(n for n, _ in grids[series])
    base = next((s for s in grids if s.model == "base"), None)
    before = _accuracy(grids[base], length) if base else None
    detail = (
        f"base model: {before:.0%}".replace("%", " %")
        if before is not None
        else "exact match, all depths"
    )
    rate = _accuracy(grids[series], length)
    return Tile(
        f"{heading(task)} at {short_length(length)}", f"{rate:.0%}".replace("%", " %"), detail
    )


def _checks_tile(checks: tuple[Check, ...]) -> Tile | None:
    if not checks:
        return None
    met = sum(check.met for check in checks)
    missed = ", ".join(check.name for check in checks if not check.met)
    detail = f"missed: {missed}" if missed else "all of them"
    return Tile("Checks passed", f"{met} of {len(checks)}", detail, "bad" if missed else "good")


def _time_tile(stages: tuple[StageRecord, ...]) -> Tile | None:
    if not stages:
        return None
    return Tile(
        "Total time", _rough(sum(stage.seconds for stage in stages)), f"{len(stages)} stages"
    )


def _rough(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _main(grid: PerplexityGrid, model: str) -> Series | None:
    """Returns the series that stands for a model: LongRoPE's, else the first."""
    own = grid.of_group(model)
    searched = [series for series in own if method_family(series.method) == "longrope"]
    return next(iter(searched or own), None)


def _untouched(grid: PerplexityGrid) -> Series | None:
    return next((s for s in grid.of_group("base") if method_family(s.method) == "none"), None)


def _accuracy(grid: RetrievalGrid, length: int) -> float | None:
    cells = [cell for (n, _), cell in grid.items() if n == length]
    trials = sum(trials for _, trials in cells)
    return sum(correct for correct, _ in cells) / trials if trials else None
