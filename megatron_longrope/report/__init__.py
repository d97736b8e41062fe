"""One self-contained HTML page about a run, and its tables; reads result files only."""

from megatron_longrope.report.page import write_report
from megatron_longrope.report.search_page import write_convergence_plot
from megatron_longrope.report.tables import (
    grid_of_rows,
    plain_perplexity_table,
    rich_perplexity_table,
)

__all__ = [
    "grid_of_rows",
    "plain_perplexity_table",
    "rich_perplexity_table",
    "write_convergence_plot",
    "write_report",
]
