"""The page about one search, and its plot as a file of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope.artifacts.summaries import BaselineMargin, SearchSummary
from megatron_longrope.errors import InputError
from megatron_longrope.report.convergence import Convergence, convergence
from megatron_longrope.report.headline import Tile, duration
from megatron_longrope.report.plots import convergence_panel, convergence_png, factor_panels
from megatron_longrope.report.plots.factors import factors_by_target
from megatron_longrope.report.run_files import RunFiles, read_run
from megatron_longrope.report.style import Look, method_look, short_length
from megatron_longrope.report.tables import format_perplexity

_COPY = "best"
"""The factors file that is a copy of what the last search left under its own name."""


@dataclass(frozen=True)
class BaselineLine:
    """A row of the table of baselines."""

    baseline: BaselineMargin
    look: Look

    @property
    def margin(self) -> str:
        """How much higher the perplexity is than that of the best candidate, in percent."""
        return _percent(self.baseline.ratio)

    @property
    def interval(self) -> str:
        """The 95 % interval of the margin over documents; a dash where there is none."""
        low, high = self.baseline.low, self.baseline.high
        return "–" if low is None or high is None else f"{_percent(low)} to {_percent(high)}"


def write_convergence_plot(run_dir: Path) -> Path:
    """Writes `report/convergence.png` for a directory of `longrope search`, and returns its path.

    It has a curve per searcher whose journal scored candidates as the last search did. Raises
    InputError for any other directory and for a damaged file.
    """
    run = read_run(Path(run_dir))
    if run.search is None:
        raise InputError("directory", run_dir, "no result of a search in it")
    path = Path(run_dir) / "report" / "convergence.png"
    found = convergence(run.journals, run.search.journal_name)
    if not found.curves:
        raise InputError(
            "directory",
            run_dir,
            f"no journals/{run.search.journal_name}.jsonl with a finished evaluation in it",
        )
    title = f"Factor search for {short_length(run.search.target_length)} tokens"
    convergence_png(found, run.search.best_baseline, title, path)
    return path


def search_values(run: RunFiles, search: SearchSummary) -> Mapping[str, Any]:
    """Returns the values that the template of a search shows."""
    found = convergence(run.journals, search.journal_name)
    factors = {name: file for name, file in run.factors.items() if name != _COPY}
    baselines = _lines(search.baselines)
    held_out = [] if search.held_out is None else _lines(search.held_out.baselines)
    return {
        "name": "Factor search",
        "run_name": run.name,
        "window": run.original_length,
        "target": search.target_length,
        "search": search,
        "tiles": _tiles(search, found),
        "baselines": baselines,
        "no_interval": all(line.baseline.low is None for line in baselines),
        "held_out": held_out,
        "no_held_out_interval": all(line.baseline.low is None for line in held_out),
        "measure": "perplexity" if search.score is None else "score",
        "convergence_panel": convergence_panel(found, search.best_baseline),
        "curves": found.curves,
        "factor_panels": factor_panels(factors),
        "factor_groups": factors_by_target(factors),
    }


def _tiles(search: SearchSummary, found: Convergence) -> list[Tile]:
    tiles = [
        Tile(
            f"{'Perplexity' if search.score is None else 'Score'} at "
            f"{short_length(search.target_length)}",
            format_perplexity(search.value),
            ", ".join(part.words for part in search.parts) or "best factors, search documents",
        )
    ]
    baseline = search.best_baseline
    if baseline is not None:
        detail = (
            f"{'perplexity' if baseline.score is None else 'score'} "
            f"{format_perplexity(baseline.value)}, {baseline.attention_factor} "
            "attention factor"
        )
        tiles.append(
            Tile(
                f"Best baseline: {method_look(baseline.method).label}",
                _percent(baseline.ratio),
                detail,
            )
        )
    tiles.append(
        Tile("Evaluations", str(search.evaluations), f"{search.stopped_early} stopped early")
    )
    tiles.append(Tile("Operations", f"{search.flops:.3g}", "FLOP, backward passes included"))
    tiles.append(Tile("Time", duration(search.seconds), f"{search.tokens:,} tokens forward"))
    return tiles


def _lines(rows: Sequence[BaselineMargin]) -> list[BaselineLine]:
    return [BaselineLine(row, method_look(row.method)) for row in rows]


def _percent(ratio: float | None) -> str:
    """Returns by how much a ratio exceeds 1, in percent; a dash for None."""
    return "–" if ratio is None else f"{100 * (ratio - 1):+.2f} %".replace("-", "−")
