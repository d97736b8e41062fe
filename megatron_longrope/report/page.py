"""The report page of a run or a search: draws what is there, and says what is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from megatron_longrope.atomic import write_text_file
from megatron_longrope.report.aggregate import perplexity_grid, position_curves, retrieval_grids
from megatron_longrope.report.headline import duration, tiles
from megatron_longrope.report.heatmap import heat_maps
from megatron_longrope.report.plots import (
    factor_panels,
    length_panels,
    loss_panels,
    position_panels,
    search_panels,
)
from megatron_longrope.report.plots.factors import factors_by_target
from megatron_longrope.report.plots.loss import by_stage
from megatron_longrope.report.provenance import found_seeds, number_text
from megatron_longrope.report.run_files import RunFiles, read_run
from megatron_longrope.report.search_page import search_values
from megatron_longrope.report.style import all_looks, heading, short_length
from megatron_longrope.report.tables import format_perplexity, perplexity_table


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report/index.html`, whole or not at all, and returns its path.

    The same files give the same page, byte for byte. Raises InputError that names a damaged file.
    """
    html = render(read_run(Path(run_dir)))
    path = Path(run_dir) / "report" / "index.html"
    write_text_file(path, html)
    return path


def render(run: RunFiles) -> str:
    """Returns the page; everything in it that came from files is escaped."""
    if run.search is not None:
        return _template("search.html.j2").render(search_values(run, run.search), looks=all_looks())
    return _template("page.html.j2").render(page_values(run), looks=all_looks())


def page_values(run: RunFiles) -> Mapping[str, Any]:
    """Returns the values that the template of a run shows.

    A section whose files are missing is empty, and becomes a note of one line.
    """
    rows = run.evaluations
    grid, retrieval = perplexity_grid(rows.perplexity), retrieval_grids(rows.retrieval)
    window = run.original_length
    model = run.result.model if run.result else None
    return {
        "name": model.name if model else run.name,
        "run_name": run.name,
        "model": model,
        "window": window,
        "target": run.target_length,
        "result": run.result,
        "tiles": tiles(run, grid, retrieval),
        "factor_panels": factor_panels(run.factors),
        "factor_groups": factors_by_target(run.factors),
        "search_panels": search_panels(run.journals, run.factors),
        "loss_panels": loss_panels(run.metrics),
        "loss_stages": by_stage(run.metrics),
        "length_panels": length_panels(grid, window),
        "position_panels": position_panels(position_curves(rows.positions), window),
        "heat_maps": heat_maps(retrieval, window),
        "table": perplexity_table(grid) if grid.cells else None,
        "uneven": grid.uneven_lengths(),
        "has_infinite": any(
            math.isinf(total.perplexity) for row in grid.cells.values() for total in row.values()
        ),
        "num_documents": len({row.document for row in rows.perplexity}),
        "seeds": found_seeds(run.config),
        "config_text": run.config_text,
    }


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("megatron_longrope.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "as_length": short_length,
        "duration": duration,
        "perplexity": format_perplexity,
        "number": number_text,
        "heading": heading,
    }
    return environment.get_template(name)
