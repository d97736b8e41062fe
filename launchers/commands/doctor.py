"""`longrope doctor`: what this machine has, what is missing, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launchers.options import json_option, write_json
from megatron_longrope.errors import LongRopeError

if TYPE_CHECKING:
    from megatron_longrope.runtime.machine_report import Finding


@click.command()
@json_option
@click.pass_context
def command(ctx: click.Context, json_path: Path | None) -> None:
    """Look at this machine: Python, packages, GPUs, launchers.

    Prints what is there, what is missing, and what each absence costs. The exit code is 0 if the
    main job, extending a model, can run here, and 1 if something essential is missing.
    """
    try:
        from megatron_longrope.runtime import gpu_stack, machine_report
    except (ImportError, OSError) as error:  # a torch that does not load is the first thing to say
        raise LongRopeError(f"nothing can run: {error}") from error
    findings = machine_report.machine_report()
    able = machine_report.can_run_main_job(findings)
    Console().print(_table(findings))
    choice = gpu_stack.choose_engine(gpu_stack.gpu_stack())
    click.echo(f"--engine auto takes {choice.engine} for a model in bfloat16: {choice.reason}.")
    click.echo(
        "The main job can run here."
        if able
        else "The main job cannot run here: something essential is missing."
    )
    if json_path is not None:
        write_json(
            json_path,
            {
                "can_run": able,
                "engine": asdict(choice),
                "findings": [asdict(finding) for finding in findings],
            },
        )
    ctx.exit(0 if able else 1)


def _table(findings: Sequence[Finding]) -> Table:
    """Returns one row per finding, with the cost of its absence where it is absent."""
    table = Table("", "what", "seen", "what its absence costs", show_lines=False)
    for finding in findings:
        mark = (
            Text("yes", "green")
            if finding.present
            else Text("NO" if finding.essential else "no", "red")
        )
        cost = "" if finding.present else finding.cost_of_absence
        table.add_row(mark, Text(finding.name), Text(finding.detail), Text(cost))
    return table
