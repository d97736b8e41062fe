"""`longrope report RUN_DIR`: writes the HTML page of a run or a search."""

from __future__ import annotations

from pathlib import Path

import click

from launchers.options import json_option, write_json


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@json_option
def command(run_dir: Path, json_path: Path | None) -> None:
    """Write the HTML report of a run or a search, from the files in RUN_DIR.

    The report is RUN_DIR/report/index.html, one page that needs no other file. A run writes it by
    itself at its end; this writes it anew, also for a run that is not done yet.
    """
    from megatron_longrope.report import write_report  # matplotlib takes a second to import

    page = write_report(run_dir)
    click.echo(f"report: {page}")
    if json_path is not None:
        write_json(json_path, {"run_dir": str(run_dir), "report": str(page)})
