"""The plot of rescale factors λ of all methods against the wavelength of their rotary pair."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from megatron_longrope.artifacts.factors import FactorRange, FactorSet, RopeFactors
from megatron_longrope.artifacts.rows import perplexity_of
from megatron_longrope.atomic import finite_or_none
from megatron_longrope.report.aggregate import method_family, method_order
from megatron_longrope.report.plots.panel import (
    LegendEntry,
    Panel,
    draw_svg,
    highlight,
    legend_entry,
    mark_length,
)
from megatron_longrope.report.style import length_axis, log_value_axis, method_look, short_length


@dataclass(frozen=True)
class NamedFactors:
    """Factors with a label for the page."""

    source: str
    """Name of the file that they come from."""
    label: str
    factors: RopeFactors
    is_last: bool
    """Whether they serve the longest inputs of their file."""

    @property
    def variable(self) -> str:
        """The CSS variable of the method's colour."""
        return method_look(self.factors.origin.method).variable

    @property
    def span(self) -> str:
        """The smallest and the largest λ as text, or the one value that all pairs have."""
        ends = dict.fromkeys(
            f"{value:.4g}" for value in (min(self.factors.rescale), max(self.factors.rescale))
        )
        return " – ".join(ends)

    @property
    def perplexity(self) -> float | None:
        """Perplexity on the data searched on, from the recorded score of text; None without one."""
        score = self.factors.origin.score
        return (
            None
            if score is None or self.factors.origin.scored is not None
            else finite_or_none(perplexity_of(score, 1))
        )


def wavelengths(factors: RopeFactors) -> list[float]:
    """Returns 2π·base^(2i/d), in tokens, of every rotary pair i before rescaling."""
    return [
        2 * math.pi * factors.base ** (2 * i / factors.head_dim)
        for i in range(len(factors.rescale))
    ]


def factors_by_target(files: Mapping[str, FactorSet]) -> dict[int, list[NamedFactors]]:
    """Returns the distinct factors by target length, baselines first.

    A set with several ranges is listed whole under the target length of its longest range. Sets of
    more ranges are read first: short factors that also have a file of their own are shown again
    only beside other methods for that length.
    """
    by_target: dict[int, list[NamedFactors]] = {}
    shown: dict[tuple[object, ...], set[int]] = {}
    compared = {
        _target(file)
        for file in files.values()
        if file.ranges[-1].factors.origin.method != "longrope"
    }
    for source, file in sorted(files.items(), key=lambda item: (-len(item[1].ranges), item[0])):
        target = _target(file)
        for entry in file.ranges:
            factors, is_last = entry.factors, entry is file.ranges[-1]
            key = (
                factors.target_length,
                factors.origin.method,
                factors.rescale,
                factors.start_tokens,
                factors.attention_factor,
            )
            elsewhere = shown.setdefault(key, set())
            if not elsewhere or (target in compared and target not in elsewhere):
                elsewhere.add(target)
                by_target.setdefault(target, []).append(
                    NamedFactors(source, _label(entry, is_last), factors, is_last)
                )
    return {target: _labelled(by_target[target]) for target in sorted(by_target)}


def _target(file: FactorSet) -> int:
    return file.ranges[-1].factors.target_length


def _label(entry: FactorRange, is_last: bool) -> str:
    name = method_look(entry.factors.origin.method).label
    return (
        name if is_last or entry.up_to is None else f"{name}, inputs to {short_length(entry.up_to)}"
    )


def _labelled(group: list[NamedFactors]) -> list[NamedFactors]:
    """Returns factors in order, baselines first; the file's name is added to equal labels."""
    counts = Counter(item.label for item in group)
    named = [
        replace(i, label=f"{i.label} · {i.source}") if counts[i.label] > 1 else i for i in group
    ]
    return sorted(
        named,
        key=lambda item: (*method_order(item.factors.origin.method), not item.is_last, item.source),
    )


def factor_panels(files: Mapping[str, FactorSet]) -> list[Panel]:
    """Returns one panel per target length."""
    return [_panel(target, group) for target, group in factors_by_target(files).items()]


def _panel(target: int, group: list[NamedFactors]) -> Panel:
    window = group[0].factors.original_length
    scale = target / window
    title = (
        f"Factors for {short_length(target)} ({scale:g}× the window)"
        if target != window
        else "Factors for the window"
    )
    description = (
        f"Rescale factors against wavelength, {len(group)} sets for {short_length(target)} tokens"
    )
    svg = draw_svg(
        f"factors-{target}", description, lambda axes: _paint(axes, target, window, group)
    )
    return Panel(title, svg, tuple(_legend(item, index, group) for index, item in enumerate(group)))


def _paint(axes: Axes, target: int, window: int, group: list[NamedFactors]) -> None:
    for index, item in enumerate(group):
        method = item.factors.origin.method
        look = method_look(method)
        axes.plot(
            wavelengths(item.factors),
            item.factors.rescale,
            color=look.light,
            marker=look.marker,
            # staggered markers, so that curves on top of one another stay visible
            markevery=(index % 4, 4),
            linestyle=_dashes(index, group),
            **highlight(method_family(method) == "longrope"),
        )
    waves = [wave for item in group for wave in wavelengths(item.factors)]
    values = [value for item in group for value in item.factors.rescale]
    length_axis(axes, min(waves), max(*waves, target), max_ticks=8)
    log_value_axis(axes, min(*values, 1.0), max(*values, target / window, 1.5))
    mark_length(axes, window, "window")
    if target != window:
        mark_length(axes, target, "target", to_left=target < window)
    axes.set_xlabel("wavelength of the pair before rescaling (tokens)")
    axes.set_ylabel("rescale factor λ")


def _dashes(index: int, group: list[NamedFactors]) -> str | tuple[int, tuple[int, ...]]:
    """Returns the line style of a curve: dashed for a further set of the same method."""
    family = method_family(group[index].factors.origin.method)
    repeat = sum(method_family(item.factors.origin.method) == family for item in group[:index])
    return "-" if repeat == 0 else (0, (4, 1 + repeat))


def _legend(item: NamedFactors, index: int, group: list[NamedFactors]) -> LegendEntry:
    look = method_look(item.factors.origin.method)
    bold = method_family(item.factors.origin.method) == "longrope"
    return legend_entry(look, item.label, dashed=_dashes(index, group) != "-", bold=bold)
