"""The plot of a search: best perplexity so far, against the baselines that it started from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from megatron_longrope.artifacts.factors import FactorSet
from megatron_longrope.artifacts.journal import JournalEntry, SearchJournal
from megatron_longrope.report.aggregate import best_so_far, method_order
from megatron_longrope.report.plots.panel import LegendEntry, Panel, draw_svg, legend_entry
from megatron_longrope.report.style import LOOKS, MUTED, OTHER, heading, method_look

SEARCHED = LOOKS["longrope"]
TOP = 1.25
"""Perplexities above TOP times the best are cut off: they would flatten the curve."""
GRID_STEP = 0.01
"""The grid that a search rounds its seeds to; in an open space it thins out evenly in 1/λ."""


@dataclass(frozen=True)
class Baseline:
    """The best starting point of one method, as the search scored it."""

    method: str | None
    """The scaling method; None where no factors file holds the λ of this starting point."""
    perplexity: float


def search_panels(
    journals: Mapping[str, SearchJournal], files: Mapping[str, FactorSet]
) -> list[Panel]:
    """Returns one panel per journal that holds a completed evaluation with a finite perplexity."""
    panels: list[Panel] = []
    for stage, journal in journals.items():
        entries = journal.entries
        if any(_is_usable(entry) for entry in entries):
            panels.append(_panel(len(panels), stage, journal, baselines(entries, files)))
    return panels


def baselines(entries: Sequence[JournalEntry], files: Mapping[str, FactorSet]) -> list[Baseline]:
    """Returns the best seed of each method.

    Journals do not name the methods of seeds: a seed is of the method whose factors file holds the
    same λ, within rounding.
    """
    best: dict[str | None, float] = {}
    for entry in entries:
        if entry.provenance.origin == "seed" and _is_usable(entry):
            method = _method_of(entry, files)
            best[method] = min(entry.evaluation.perplexity, best.get(method, math.inf))
    found = [Baseline(method, perplexity) for method, perplexity in best.items()]
    return sorted(found, key=lambda item: method_order(item.method or "~"))


def _is_usable(entry: JournalEntry) -> bool:
    return entry.evaluation.completed and math.isfinite(entry.evaluation.perplexity)


def _method_of(entry: JournalEntry, files: Mapping[str, FactorSet]) -> str | None:
    for file in files.values():
        for factors in (item.factors for item in file.ranges):
            pairs = list(zip(factors.rescale, entry.candidate.rescale, strict=False))
            if len(pairs) == len(factors.rescale) == len(entry.candidate.rescale) and all(
                abs(a - b) <= GRID_STEP or abs(1 / a - 1 / b) <= GRID_STEP**2 for a, b in pairs
            ):
                return factors.origin.method
    return None


def _panel(index: int, stage: str, journal: SearchJournal, lines: list[Baseline]) -> Panel:
    entries = journal.entries
    values = [(entry.evaluation.perplexity, entry.evaluation.completed) for entry in entries]
    curve = best_so_far(values)
    low = curve[-1]
    seeds = [line.perplexity for line in lines]
    high = min(max([value for value in curve if math.isfinite(value)] + seeds), TOP * low)
    high = low + (high - low) * 1.12 if high > low else low * 1.01
    name = f"search-{index}"
    svg = draw_svg(
        name,
        f"Search convergence of {stage}",
        lambda axes: _paint(
            axes, values, curve, lines, (low, high), journal.header.objective.measure
        ),
    )
    steps = sum(entry.evaluation.sample is not None for entry in entries)
    stopped = sum(entry.stopped_early for entry in entries)
    caption = f"{len(entries)} evaluations, best {low:.3f}"
    if not journal.header.objective.is_perplexity:
        caption += ": a score, exp(loss) over several parts, no perplexity"
    if steps:
        caption += f"; {steps} were steps of a descent, each on some of the documents"
    if stopped:
        caption += f"; {stopped} stopped early"
    above = [
        method_look(line.method or "").label or "a starting point"
        for line in lines
        if line.perplexity > high
    ]
    if above:
        caption += f"; above the plot: {', '.join(above)}"
    return Panel(
        heading(stage),
        svg,
        _legend([line for line in lines if line.perplexity <= high]),
        caption + ".",
    )


def _paint(
    axes: Axes,
    values: list[tuple[float, bool]],
    curve: list[float],
    lines: list[Baseline],
    limits: tuple[float, float],
    measure: str,
) -> None:
    low, high = limits
    for line in lines:
        look = method_look(line.method) if line.method else OTHER
        axes.axhline(
            line.perplexity, color=look.light, linewidth=1.6, linestyle=(0, (5, 2)), zorder=3
        )
    shown = [(i, v) for i, (v, completed) in enumerate(values, start=1) if completed and v <= high]
    axes.plot(
        [i for i, _ in shown],
        [v for _, v in shown],
        ".",
        color=MUTED,
        markersize=3.2,
        alpha=0.55,
        zorder=2,
    )
    steps = [(i, v) for i, v in enumerate(curve, start=1) if math.isfinite(v)]
    axes.plot(
        [i for i, _ in steps],
        [v for _, v in steps],
        color=SEARCHED.light,
        linewidth=2.8,
        drawstyle="steps-post",
        zorder=5,
    )
    axes.set_ylim(low - 0.06 * (high - low), high)
    axes.set_xlim(0, len(values) * 1.02 + 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("evaluations")
    axes.set_ylabel(measure)


def _legend(lines: list[Baseline]) -> tuple[LegendEntry, ...]:
    best = LegendEntry("Best so far", SEARCHED.variable, "", False, True)
    dots = LegendEntry("One candidate", "muted", "dot", False, False)
    known = [legend_entry(method_look(line.method), dashed=True) for line in lines if line.method]
    named = [LegendEntry(entry.label, entry.variable, "", True) for entry in known]
    unknown = [
        LegendEntry("Best unnamed start", OTHER.variable, "", True)
        for line in lines
        if line.method is None
    ]
    return (best, dots, *named, *unknown)
