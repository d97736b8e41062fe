"""The plots of training loss and learning rate by step, for the extended model and the control."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from megatron_longrope.artifacts.metrics import MetricsRow
from megatron_longrope.report.plots.panel import LegendEntry, Panel, draw_svg
from megatron_longrope.report.style import CONTROL, LOOKS, Look, heading

SMOOTHING = 0.05
"""Width of the running mean, as a share of the steps of a stage."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
OTHERS = ("yarn", "ntk", "dynamic-ntk", "pi", "llama3", "none")


def by_stage(rows: Sequence[MetricsRow]) -> dict[str, list[MetricsRow]]:
    """Returns the steps of each stage, ascending.

    A step that was written again after an interruption counts once, as it was written last.
    """
    stages: dict[str, dict[int, MetricsRow]] = {}
    for row in rows:
        stages.setdefault(row.stage, {})[row.step] = row
    return {stage: [steps[step] for step in sorted(steps)] for stage, steps in stages.items()}


def loss_panels(rows: Sequence[MetricsRow]) -> list[Panel]:
    """Returns the loss curves of all stages and, where recorded, their learning rates.

    There is no panel where there are no steps.
    """
    stages = by_stage(rows)
    if not stages:
        return []
    looks = stage_looks(list(stages))
    legend = tuple(
        LegendEntry(heading(stage), looks[stage].variable, bold=True) for stage in stages
    )
    svg = draw_svg("loss", "Training loss by step", lambda axes: _paint_loss(axes, stages, looks))
    caption = "Thin: every step. Thick: running mean over a twentieth of the steps."
    panels = [Panel("Loss", svg, legend, caption)]
    if any(row.lr is not None for row in rows):
        svg = draw_svg(
            "rate", "Learning rate by step", lambda axes: _paint_rate(axes, stages, looks)
        )
        panels.append(Panel("Learning rate", svg, legend))
    return panels


def stage_looks(stages: Sequence[str]) -> dict[str, Look]:
    """Returns the look of each stage.

    The first fine-tuning has LongRoPE's, the control its own, and other stages what is left.
    """
    looks, spare = {}, list(OTHERS)
    taken = False
    for stage in stages:
        if "control" in stage:
            looks[stage] = CONTROL
        elif "fine" in stage and not taken:
            looks[stage], taken = LOOKS["longrope"], True
        else:
            looks[stage] = LOOKS[spare.pop(0) if len(spare) > 1 else spare[0]]
    return looks


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Returns, at each place, the mean of the last `width` values up to there, NaN left out."""
    means = []
    for end in range(1, len(values) + 1):
        window = [value for value in values[max(0, end - width) : end] if math.isfinite(value)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means


def _paint_loss(axes: Axes, stages: dict[str, list[MetricsRow]], looks: dict[str, Look]) -> None:
    for stage, rows in stages.items():
        steps, losses = [row.step for row in rows], [row.loss for row in rows]
        finite = [loss if math.isfinite(loss) else math.nan for loss in losses]
        smooth = running_mean(finite, max(1, round(SMOOTHING * len(rows))))
        axes.plot(steps, finite, color=looks[stage].light, linewidth=0.8, alpha=0.4, zorder=2)
        axes.plot(steps, smooth, color=looks[stage].light, linewidth=2.4, zorder=4)
    _label_axes(axes, "loss (nats per token)")


def _paint_rate(axes: Axes, stages: dict[str, list[MetricsRow]], looks: dict[str, Look]) -> None:
    for index, (stage, rows) in enumerate(stages.items()):
        recorded = [(row.step, row.lr) for row in rows if row.lr is not None]
        # equal schedules lie on top of one another: dashes show those below
        dashes = "-" if index == 0 else (0, (4, 1 + index))
        axes.plot(
            [step for step, _ in recorded],
            [rate for _, rate in recorded],
            color=looks[stage].light,
            linewidth=2.4,
            linestyle=dashes,
        )
    _label_axes(axes, "learning rate")
    peak = max((row.lr for rows in stages.values() for row in rows if row.lr), default=1.0)
    power = math.floor(math.log10(peak))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate / 10.0**power:.3g}"))
    axes.set_ylabel(f"learning rate (×10{str(power).translate(SUPERSCRIPTS)})")
    axes.set_ylim(bottom=0)


def _label_axes(axes: Axes, y_label: str) -> None:
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(y_label)
