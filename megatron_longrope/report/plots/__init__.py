"""The plots of the report: each function turns records into panels of SVG with legends."""

from megatron_longrope.report.plots.convergence import convergence_panel, convergence_png
from megatron_longrope.report.plots.curves import length_panels, position_panels
from megatron_longrope.report.plots.factors import factor_panels
from megatron_longrope.report.plots.loss import loss_panels
from megatron_longrope.report.plots.panel import LegendEntry, Panel
from megatron_longrope.report.plots.search import search_panels

__all__ = [
    "LegendEntry",
    "Panel",
    "convergence_panel",
    "convergence_png",
    "factor_panels",
    "length_panels",
    "loss_panels",
    "position_panels",
    "search_panels",
]
