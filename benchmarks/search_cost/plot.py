"""The plot of the best perplexity against cost, with a line per search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.search_cost.compare import Curve


def plot_curves(curves: Sequence[Curve], path: Path) -> None:
    """Writes a PNG with cost on a logarithmic axis, a colour per searcher and a line per seed."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = list(dict.fromkeys(curve.searcher for curve in curves))
    for curve in curves:
        first = next(other for other in curves if other.searcher == curve.searcher) is curve
        axes.step(
            curve.costs,
            curve.perplexities,
            where="post",
            color=f"C{names.index(curve.searcher)}",
            label=curve.searcher if first else None,
            linewidth=1.4,
        )
    finite = [value for curve in curves for value in curve.perplexities if value < float("inf")]
    axes.set(
        xscale="log",
        xlabel="cost in forward passes over all search documents",
        ylabel="best perplexity so far",
        ylim=(min(finite) * 0.995, min(finite) * 1.12),
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=140)
    plt.close(figure)
