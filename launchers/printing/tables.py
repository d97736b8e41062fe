"""Tables on a terminal and in a file: no column or digit is cut, and tab-separated on demand."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from megatron_longrope.atomic import replacing
from megatron_longrope.errors import InputError

CallableT = TypeVar("CallableT", bound=Callable[..., Any])
_MOST = 10_000
"""More columns than any table here needs."""


def print_table(table: Table, *, width_of_a_file: int | None = None) -> None:
    """Prints a table of which nothing is cut, as rich would at 80 columns without a terminal.

    Without a terminal the table is as wide as its longest rows, or `width_of_a_file` columns where
    its cells fold. On a terminal it is as wide as that, or wider where a word would not fit.
    """
    console = Console(highlight=False)
    needed = Measurement.get(console, console.options.update(max_width=_MOST), table)
    width = console.width if console.is_terminal else width_of_a_file or needed.maximum
    Console(highlight=False, width=max(width, needed.minimum)).print(table)


def tsv_option(command: CallableT) -> CallableT:
    """Adds `--tsv FILE|-`, passed as `tsv: str | None`; `write_tsv` writes it."""
    return click.option(
        "--tsv",
        metavar="FILE|-",
        callback=_checked_target,
        help="Write the table tab-separated, all digits; -: on stdout, instead of the table.",
    )(command)


def write_tsv(target: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows tab-separated, under a line of their keys, to a file or to stdout (`-`).

    None becomes an empty cell. Raises InputError where the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow(dict.fromkeys(key for row in rows for key in row))
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    if target == "-":
        sys.stdout.write(text.getvalue())
        return
    try:
        with replacing(Path(target)) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise InputError("--tsv", target, f"cannot be written: {error.strerror}") from error


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return str(value)


def _checked_target(ctx: click.Context, param: click.Parameter, target: str | None) -> str | None:
    if target not in (None, "-") and not Path(target or "").absolute().parent.is_dir():
        raise InputError("--tsv", target, "its folder does not exist")
    return target
