"""The result files of evaluations, and perplexities over the rows in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_longrope.artifacts.rows import perplexity_of
from megatron_longrope.atomic import write_json_file
from megatron_longrope.errors import InputError


class Row(Protocol):
    """A measurement that can be written as one row."""

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON values."""


def write_rows(path: Path, rows: Iterable[Row | Mapping[str, Any]], **more: Any) -> None:
    """Writes {"rows": […], **more} to `path`, whole or not at all.

    Numbers that are not finite become null.
    """
    plain = [dict(row) if isinstance(row, Mapping) else row.to_json() for row in rows]
    write_json_file(path, {"rows": plain, **more})


def read_rows(path: Path, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns the rows in `path`.

    Raises InputError where it is no such file, and where a row lacks a `required` key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("results", path, f"cannot be read as JSON: {error}") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("results", path, 'must be an object with a list "rows" of objects')
    for number, row in enumerate(rows):
        missing = [key for key in required if key not in row]
        if missing:
            raise InputError("results", path, f"row {number} has no {missing[0]}")
    return rows


def aggregate(
    rows: Iterable[Mapping[str, Any]],
    by: Sequence[str] = ("method", "length"),
    *,
    last_quarter: bool = False,
) -> dict[tuple[Any, ...], float]:
    """Returns the perplexity exp(Σ nll / Σ tokens) of each group of rows, in order of appearance.

    Rows with the same values of the keys `by` form a group, over whose documents both sums are
    taken before they are divided. `last_quarter` takes the predictions in the last quarter of the
    context alone. A null sum, which was not finite, makes the perplexity NaN.

    >>> rows = [
    ...     {"method": "yarn", "length": 128, "nll_sum": 200.0, "tokens": 100},
    ...     {"method": "yarn", "length": 128, "nll_sum": 10.0, "tokens": 5},
    ... ]
    >>> aggregate(rows)
    {('yarn', 128): 7.38905609893065}
    """
    prefix = "last_quarter_" if last_quarter else ""
    sums: dict[tuple[Any, ...], list[float]] = {}
    counts: dict[tuple[Any, ...], int] = {}
    for row in rows:
        key = tuple(row[name] for name in by)
        nll_sum = row[f"{prefix}nll_sum"]
        sums.setdefault(key, []).append(math.nan if nll_sum is None else nll_sum)
        counts[key] = counts.get(key, 0) + row[f"{prefix}tokens"]
    return {key: perplexity_of(math.fsum(values), counts[key]) for key, values in sums.items()}
