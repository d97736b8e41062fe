"""The plot of best perplexity against cost, with a curve per searcher and the best baseline."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from megatron_longrope.artifacts.summaries import BaselineMargin
from megatron_longrope.report.convergence import Convergence
from megatron_longrope.report.plots.panel import (
    LegendEntry,
    Panel,
    draw_svg,
    legend_entry,
    write_png,
)
from megatron_longrope.report.style import MUTED, method_look, round_ticks, searcher_look

TOP = 1.12
"""Perplexities above TOP times the lowest are cut off: they would flatten the curves."""
COST = "cost in forward passes over all search documents"


def convergence_panel(found: Convergence, baseline: BaselineMargin | None) -> Panel | None:
    """Returns the plot for the page; None where there is no curve."""
    if not found.curves:
        return None
    title = f"Best {found.measure} against cost"
    svg = draw_svg("convergence", title, lambda axes: _paint(axes, found, baseline))
    entries = [legend_entry(searcher_look(curve.searcher), bold=True) for curve in found.curves]
    if baseline is not None:
        entries.append(LegendEntry(_baseline_label(baseline), "muted", "", True))
    return Panel(title, svg, tuple(entries), _note(found))


def convergence_png(
    found: Convergence, baseline: BaselineMargin | None, title: str, path: Path
) -> None:
    """Writes the same plot as a PNG, with legend and title."""

    def paint(axes: Axes) -> None:
        _paint(axes, found, baseline)
        axes.set_title(title, loc="left")
        axes.legend(loc="lower left", frameon=False)  # curves that fall leave room there
        if found.left_out:
            axes.set_xlabel(f"{COST}\n{_note(found)}")

    write_png(path, paint)


def _paint(axes: Axes, found: Convergence, baseline: BaselineMargin | None) -> None:
    curves = found.curves
    values = [value for curve in curves for value in curve.perplexities]
    for curve in curves:
        look = searcher_look(curve.searcher)
        axes.step(
            curve.costs,
            curve.perplexities,
            where="post",
            color=look.light,
            linewidth=2.2,
            label=look.label,
            zorder=3,
        )
        axes.plot(curve.costs[-1], curve.perplexities[-1], look.marker, color=look.light, zorder=4)
    if baseline is not None and baseline.value is not None:
        axes.axhline(
            baseline.value,
            color=MUTED,
            linewidth=1.6,
            linestyle=(0, (5, 2)),
            zorder=2,
            label=_baseline_label(baseline),
        )
        values.append(baseline.value)
    low = min(values)
    highest = max(value for value in values if value <= TOP * low)
    high = highest if highest > low else 1.01 * low
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    _cost_axis(
        axes, min(curve.costs[0] for curve in curves), max(curve.costs[-1] for curve in curves)
    )
    axes.set_xlabel(COST)
    axes.set_ylabel(f"best {found.measure} so far")


def _cost_axis(axes: Axes, low: float, high: float) -> None:
    low, high = 0.9 * low, 1.15 * max(high, 2 * low)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(round_ticks(low, high)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _baseline_label(baseline: BaselineMargin) -> str:
    return (
        f"Best baseline: {method_look(baseline.method).label}, {baseline.attention_factor} "
        "attention factor"
    )


def _note(found: Convergence) -> str:
    return f"Not shown, scored otherwise: {', '.join(found.left_out)}." if found.left_out else ""
