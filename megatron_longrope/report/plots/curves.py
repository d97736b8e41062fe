"""The plots of perplexity against length and position: a panel per model, a curve per method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from megatron_longrope.artifacts.results import NllTotal
from megatron_longrope.artifacts.rows import AttentionFactorSource, is_untouched
from megatron_longrope.report.aggregate import (
    PerplexityGrid,
    Series,
    method_family,
    series_order,
)
from megatron_longrope.report.plots.panel import (
    LegendEntry,
    Panel,
    draw_svg,
    highlight,
    legend_entry,
    mark_length,
)
from megatron_longrope.report.style import (
    length_axis,
    log_value_axis,
    model_name,
    series_look,
    short_length,
)
from megatron_longrope.report.tables import format_perplexity

Points = Sequence[tuple[float, float]]
TOP = 3.0
"""Perplexities above TOP times the lowest are cut off, so that the best can be told apart."""
SOURCES: tuple[AttentionFactorSource, ...] = ("own", "searched")


@dataclass(frozen=True)
class Frame:
    """The axes that all panels of a section share."""

    tokens: tuple[float, float]
    """Lowest and highest number of tokens."""
    perplexity: tuple[float, float]
    """Lowest and highest perplexity."""
    window: int | None
    """The pretrained window in tokens; None where it is not known."""


def length_panels(grid: PerplexityGrid, window: int | None) -> list[Panel]:
    """Returns perplexity against length, in one pass: a panel per model and attention factor.

    The base model that slides its own window over the text is a guest of every panel: what cutting
    inputs to that window gives.
    """
    curves = {
        series: [(float(length), total.perplexity) for length, total in sorted(row.items())]
        for series, row in grid.cells.items()
        if not series.sliding or _is_untouched_base(series)
    }
    return _panels("length", _groups(curves), curves, window, "context length (tokens)")


def position_panels(
    buckets: Mapping[Series, Sequence[tuple[int, int, NllTotal]]], window: int | None
) -> list[Panel]:
    """Returns perplexity against position: a panel per model and attention factor.

    Each bucket of positions is drawn at its middle.
    """
    curves: dict[Series, Points] = {
        series: [((start + end) / 2, total.perplexity) for start, end, total in row]
        for series, row in buckets.items()
    }
    return _panels("position", _groups(curves), curves, window, "position in the context (tokens)")


def _groups(curves: Mapping[Series, Points]) -> dict[str, list[Series]]:
    """Returns the members of each panel, by title: a panel per model and attention factor.

    A method with only one attention factor is in both panels of its model.
    """
    groups: dict[str, list[Series]] = {}
    for model in _lead_models(curves):
        own = [s for s in sorted(curves, key=series_order) if s.model == model and not s.sliding]
        sources = [source for source in SOURCES if any(s.attention_factor == source for s in own)]
        for source in sources:
            chosen = [s for s in own if s.attention_factor == source or _has_only_one(s, own)]
            suffix = f" · {source} attention factor" if len(sources) > 1 else ""
            groups[f"{model_name(model)}{suffix}"] = chosen + _guests(model, curves)
    return groups


def _lead_models(curves: Mapping[Series, Points]) -> list[str]:
    """Returns the models with a panel of their own.

    The control has none where there is an extended model, in whose panel it is a guest.
    """
    passes = (series for series in curves if not series.sliding)
    models = list(dict.fromkeys(series.model for series in sorted(passes, key=series_order)))
    return [m for m in models if m != "control"] if "extended" in models else models


def _guests(model: str, curves: Mapping[Series, Points]) -> list[Series]:
    """Returns the guests of a panel: the base that slides its window, and in the panels of the
    extended model, ours and as exported, control and untouched base as well."""
    is_extended = model in ("extended", "exported")
    return [
        s
        for s in sorted(curves, key=series_order)
        if s.sliding or (is_extended and (s.model == "control" or _is_untouched_base(s)))
    ]


def _is_untouched_base(series: Series) -> bool:
    return (
        series.model == "base"
        and is_untouched(method_family(series.method))
        and series.attention_factor == "own"
    )


def _has_only_one(series: Series, others: Sequence[Series]) -> bool:
    """Returns whether the method was scored with one attention factor alone."""
    return sum(other.method == series.method for other in others) == 1


def _panels(
    kind: str,
    groups: Mapping[str, list[Series]],
    curves: Mapping[Series, Points],
    window: int | None,
    x_label: str,
) -> list[Panel]:
    points = [point for row in curves.values() for point in row if math.isfinite(point[1])]
    low = min((y for _, y in points), default=1.0)
    high = min(max((y for _, y in points), default=2.0), TOP * low)
    frame = Frame(
        (min((x for x, _ in points), default=1), max((x for x, _ in points), default=2)),
        (low, high),
        window,
    )
    panels = []
    for index, (title, members) in enumerate(groups.items()):

        def paint(axes: Axes, members: list[Series] = members) -> None:
            _paint(axes, members, curves, frame)
            axes.set_xlabel(x_label)

        svg = draw_svg(f"{kind}-{index}", f"Perplexity by {x_label}: {title}", paint)
        legend = tuple(_legend(series, members) for series in members)
        panels.append(Panel(title, svg, legend, _above(members, curves, high)))
    return panels


def _paint(
    axes: Axes, members: list[Series], curves: Mapping[Series, Points], frame: Frame
) -> None:
    for series in members:
        look, row = series_look(series), curves[series]
        axes.plot(
            [x for x, _ in row],
            [y if math.isfinite(y) else math.nan for _, y in row],
            color=look.light,
            marker=look.marker,
            linestyle=(0, (4, 2)) if _is_dashed(series, members) else "-",
            **highlight(method_family(series.method) == "longrope"),
        )
    length_axis(axes, *frame.tokens)
    log_value_axis(axes, *frame.perplexity)
    if frame.window:
        mark_length(axes, frame.window, "window", to_left=False)
    axes.set_ylabel("perplexity")


def _above(members: list[Series], curves: Mapping[Series, Points], high: float) -> str:
    """Returns a sentence about the curves that leave the plot at its top, and how high they get."""
    peaks = [
        (_legend(series, members).label, max(curves[series], key=lambda point: point[1]))
        for series in members
    ]
    texts = [
        f"{label} ({format_perplexity(y)} at {short_length(x)})"
        for label, (x, y) in peaks
        if y > high
    ]
    return f"Leaves the plot at the top: {', '.join(texts)}." if texts else ""


def _is_dashed(series: Series, members: list[Series]) -> bool:
    """Returns whether a curve is dashed: a guest, or a method's second attention factor."""
    same = [
        other for other in members if (other.model, other.method) == (series.model, series.method)
    ]
    return series.model != members[0].model or same[0] != series


def _legend(series: Series, members: list[Series]) -> LegendEntry:
    look = series_look(series)
    guest = series.model != members[0].model or bool(series.sliding)
    label = look.label
    if guest and series.model != "control":
        label = f"{model_name(series.model)}, {label.lower()}"
    elif series.model == "control" and not is_untouched(method_family(series.method)):
        label = f"Control, {label}"
    bold = method_family(series.method) == "longrope"
    return legend_entry(look, label, dashed=_is_dashed(series, members), bold=bold)
