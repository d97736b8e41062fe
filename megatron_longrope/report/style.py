"""The look of every plot: colours, markers and names of methods, and axes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from megatron_longrope.artifacts.rows import is_untouched
from megatron_longrope.config import format_length
from megatron_longrope.report.aggregate import Series, method_family

# Plots are drawn in the colours of the light page. `inline_svg` makes each a CSS variable, which
# has another value on the dark page.
INK, MUTED, GRID, SURFACE = "#1c2430", "#66707f", "#e4e7ec", "#fdfdfe"
THEME = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"}


@dataclass(frozen=True)
class Look:
    """The look of one method: name, CSS variable, colours of the light and dark page, marker."""

    label: str
    variable: str
    light: str
    dark: str
    marker: str


# Okabe and Ito's palette, which colour-blind readers can tell apart; every method has a marker of
# its own as well.
LOOKS = {
    "none": Look("No change", "m-none", "#7c8594", "#98a2b3", "s"),
    "model": Look("As it is", "m-model", "#4d4d7f", "#a5a5e0", "s"),
    "pi": Look("PI", "m-pi", "#56b4e9", "#6cc3f4", "v"),
    "ntk": Look("NTK-aware", "m-ntk", "#009e73", "#24c598", "^"),
    "dynamic-ntk": Look("Dynamic NTK", "m-dynamic", "#cc79a7", "#e195c0", "P"),
    "yarn": Look("YaRN", "m-yarn", "#0072b2", "#3f9fe0", "D"),
    "llama3": Look("Llama 3", "m-llama3", "#8c5a2b", "#c48f5c", "X"),
    "longrope": Look("LongRoPE", "m-longrope", "#d55e00", "#ff7f2a", "o"),
}
# Searchers share the palette: no plot shows both.
SEARCHER_LOOKS = {
    "hybrid": LOOKS["longrope"],
    "evolution": LOOKS["yarn"],
    "piecewise": LOOKS["pi"],
    "cma": LOOKS["ntk"],
    "gradient": LOOKS["dynamic-ntk"],
    "random": LOOKS["none"],
}
CONTROL = Look("Control (original window)", "m-control", "#e69f00", "#f0b429", "d")
OTHER = Look("", "m-other", "#4d4d7f", "#a5a5e0", "*")
_SECOND = "second-"
MODEL_NAMES = {
    "base": "Base model",
    "extended": "Extended model",
    "control": "Control",
    "exported": "As exported (transformers)",
}


def all_looks() -> list[Look]:
    """Returns every look that the page's style sheet needs a variable for."""
    return [*LOOKS.values(), CONTROL, OTHER]


def method_look(method: str) -> Look:
    """Returns the look of a method; unknown methods share one look, each with its own label.

    A second interpolation looks like the method that is put on top of the fine-tuned factors.
    """
    words, _, settings = method.removeprefix(_SECOND).partition(",")
    name, _, scale = words.partition(":")
    known = LOOKS.get(method_family(name))
    if known is None:
        return replace(OTHER, label=method)
    label = f"{known.label} {scale}×" if scale else known.label
    label += f" ({settings})" if settings else ""
    return replace(known, label=f"{label} on fine-tuned λ" if method.startswith(_SECOND) else label)


def searcher_look(searcher: str) -> Look:
    """Returns the look of a searcher's curve; unknown searchers share one."""
    return replace(SEARCHER_LOOKS.get(searcher, OTHER), label=searcher)


def series_look(series: Series) -> Look:
    """Returns the look of a curve: that of its method, or of the control where it is untouched."""
    if series.model == "control" and is_untouched(method_family(series.method)):
        return CONTROL
    return method_look(series.method)


def model_name(model: str) -> str:
    """Returns the name of a model as readers see it."""
    return MODEL_NAMES.get(model, model)


def heading(text: str) -> str:
    """Returns a name as a heading.

    >>> heading("fine-tune-2048")
    'Fine tune 2048'
    """
    words = text.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def rc_params(salt: str) -> dict[str, Any]:
    """Returns matplotlib's settings.

    `salt` makes the ids inside an SVG the same each time, so that the page is, too.
    """
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "DejaVu Sans",
        "font.size": 12.5,
        "xtick.labelsize": 12,
        "ytick.labelsize": 12,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.size": 3.5,
        "ytick.major.size": 0,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "lines.solid_capstyle": "round",
    }


def length_axis(axes: Axes, low: float, high: float, max_ticks: int = 9) -> None:
    """Makes x a base-2 axis over [low, high] tokens, with ticks at powers of two (256, 1k, 8k)."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    step = max(1, math.ceil((last - first + 1) / max_ticks))
    axes.set_xscale("log", base=2)
    axes.set_xlim(low * 0.88, high * 1.14)
    axes.xaxis.set_major_locator(
        FixedLocator([2.0**power for power in range(first, last + 1, step)])
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: short_length(tokens)))
    axes.xaxis.set_minor_locator(NullLocator())


def log_value_axis(axes: Axes, low: float, high: float) -> None:
    """Makes y a logarithmic axis over [low, high], with ticks at round values."""
    axes.set_yscale("log")
    pad = (high / low) ** 0.06 if high > low else 1.05
    low, high = low / pad, high * pad
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(round_ticks(low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def round_ticks(low: float, high: float) -> list[float]:
    """Returns 3 to 8 round values in [low, high], evenly spread on a log axis if there is room.

    Narrow ranges, in which too few round values of a decade fall, have equal steps instead.
    """
    ladders = ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8])
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for ladder in ladders:
        ticks = [
            m * 10.0**decade
            for decade in decades
            for m in ladder
            if low <= m * 10.0**decade <= high
        ]
        if len(ticks) >= 4:
            return ticks if len(ticks) <= 8 else ticks[:: math.ceil(len(ticks) / 8)]
    step = 10 ** math.floor(math.log10(high - low))
    while (high - low) / step < 4:
        step /= 2
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short_length(tokens: float) -> str:
    """Returns 256, 1k or 2M for whole binary multiples, and a plain number for others."""
    return format_length(round(tokens)) if tokens >= 1 else f"{tokens:g}"
