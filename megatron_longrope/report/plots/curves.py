"""Perplexity against length, and over the position in the context: one panel per model, every
method a curve."""

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
    draw,
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
# what is this much worse than the best leaves the plot, so that the contenders can be told apart
TOP = 3.0
SOURCES: tuple[AttentionFactorSource, ...] = ("own", "searched")


@dataclass(frozen=True)
class Frame:
    """The axes all panels of a section share: (low, high) in tokens and in perplexity, and the
    original window."""

    tokens: tuple[float, float]
    perplexity: tuple[float, float]
    window: int | None


def length_panels(grid: PerplexityGrid, window: int | None) -> list[Panel]:
    """Returns perplexity against length, scored from the first token on: a panel per model and
    attention factor."""
    curves = {
        series: [(float(length), total.perplexity) for length, total in sorted(row.items())]
        for series, row in grid.cells.items()
        if not series.sliding
    }
    return _panels("length", _groups(curves), curves, window, "context length (tokens)")


def position_panels(
    buckets: Mapping[Series, Sequence[tuple[int, int, NllTotal]]], window: int | None
) -> list[Panel]:
    """Returns perplexity at each position, drawn at the middle of its bucket: a panel per model and
    attention factor."""
    curves: dict[Series, Points] = {
        series: [((start + end) / 2, total.perplexity) for start, end, total in row]
        for series, row in buckets.items()
    }
    return _panels("position", _groups(curves), curves, window, "position in the context (tokens)")


def _groups(curves: Mapping[Series, Points]) -> dict[str, list[Series]]:
    """Title → members of a panel, one per model and attention factor; a method with only one stands
    in both."""
    groups: dict[str, list[Series]] = {}
    for model in _lead_models(curves):
        own = [series for series in sorted(curves, key=series_order) if series.model == model]
        sources = [source for source in SOURCES if any(s.attention_factor == source for s in own)]
        for source in sources:
            chosen = [s for s in own if s.attention_factor == source or _has_only_one(s, own)]
            suffix = f" · {source} attention factor" if len(sources) > 1 else ""
            groups[f"{model_name(model)}{suffix}"] = chosen + _guests(model, curves)
    return groups


def _lead_models(curves: Mapping[Series, Points]) -> list[str]:
    """Models with a panel of their own; the control is a guest in the extended model's, where there
    is one."""
    models = list(dict.fromkeys(series.model for series in sorted(curves, key=series_order)))
    return [m for m in models if m != "control"] if "extended" in models else models


def _guests(model: str, curves: Mapping[Series, Points]) -> list[Series]:
    """What the extended model is compared with: the control, and the base model left as it was."""
    if model != "extended":
        return []
    return [
        s for s in sorted(curves, key=series_order) if s.model == "control" or _is_untouched_base(s)
    ]


def _is_untouched_base(series: Series) -> bool:
    return (
        series.model == "base"
        and is_untouched(method_family(series.method))
        and series.attention_factor == "own"
    )


def _has_only_one(series: Series, others: Sequence[Series]) -> bool:
    """Whether the method was scored with one attention factor: it then stands in both panels."""
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

        svg = draw(f"{kind}-{index}", f"Perplexity by {x_label}: {title}", paint)
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
    """Says in words what leaves the plot at its top, and how high it gets."""
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
    """Guests from another model, and a second attention factor of the same method, are dashed."""
    same = [
        other for other in members if (other.model, other.method) == (series.model, series.method)
    ]
    return series.model != members[0].model or same[0] != series


def _legend(series: Series, members: list[Series]) -> LegendEntry:
    look = series_look(series)
    guest = series.model != members[0].model
    label = look.label
    if guest and series.model != "control":
        label = f"{model_name(series.model)}, {label.lower()}"
    elif series.model == "control" and not is_untouched(method_family(series.method)):
        label = f"Control, {label}"
    bold = method_family(series.method) == "longrope"
    return legend_entry(look, label, dashed=_is_dashed(series, members), bold=bold)
