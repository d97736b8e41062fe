"""A plot as the page shows it: an SVG with a title, a legend beside the data, and a caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_longrope.atomic import replacing
from megatron_longrope.report.style import INK, MUTED, Look, rc_params, short_length
from megatron_longrope.report.svg import inline_svg

WIDTH, HEIGHT = 520, 330
MARGINS = {"left": 60, "right": 14, "top": 26, "bottom": 50}


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend."""

    label: str
    variable: str
    """CSS variable of its colour."""
    marker: str = ""
    dashed: bool = False
    bold: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot with what the page writes around it.

    Titles and captions are plain text, which the page escapes.
    """

    title: str
    svg: Markup
    legend: tuple[LegendEntry, ...] = ()
    caption: str = ""


def draw_svg(name: str, description: str, paint: Callable[[Axes], None]) -> Markup:
    """Returns what `paint` draws as inline SVG; all plots have the same size and margins."""
    with rc_context(rc_params(name)):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.subplots()
        figure.subplots_adjust(
            left=MARGINS["left"] / WIDTH,
            right=1 - MARGINS["right"] / WIDTH,
            top=1 - MARGINS["top"] / HEIGHT,
            bottom=MARGINS["bottom"] / HEIGHT,
        )
        paint(axes)
        return inline_svg(figure, name, description)


def write_png(path: Path, paint: Callable[[Axes], None]) -> None:
    """Writes what `paint` draws as a PNG, whole or not at all; creates the folder."""
    with (
        replacing(path) as partial,
        rc_context({**rc_params("png"), "figure.facecolor": "white"}),
    ):
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        paint(figure.subplots())
        figure.savefig(partial, format="png", dpi=140, metadata={"Software": None})


def legend_entry(
    look: Look, label: str = "", *, dashed: bool = False, bold: bool = False
) -> LegendEntry:
    """Returns the legend line of a curve drawn in `look`."""
    return LegendEntry(label or look.label, look.variable, look.marker, dashed, bold)


def mark_length(axes: Axes, tokens: int, word: str, *, to_left: bool = True) -> None:
    """Draws a vertical line at `tokens`, with its name above the plot to its left or right."""
    axes.axvline(tokens, color=MUTED, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        f"{word} {short_length(tokens)}",
        xy=(tokens, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4 if not to_left else -4, 7),
        textcoords="offset points",
        ha="right" if to_left else "left",
        fontsize=12,
        color=INK,
    )


def highlight(is_searched: bool) -> dict[str, Any]:
    """Returns line settings: the searched method is thicker than its baselines, and on top."""
    return {"linewidth": 2.8, "zorder": 5} if is_searched else {"linewidth": 1.7, "zorder": 3}
