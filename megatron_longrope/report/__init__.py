"""The HTML report of a run or a search, made from the files in its directory alone."""

from megatron_longrope.report.page import write_report
from megatron_longrope.report.search_page import write_convergence_plot
from megatron_longrope.report.tables import grid_of_rows

__all__ = [
    "grid_of_rows",
    "write_convergence_plot",
    "write_report",
]
