"""Result files of evaluations: written atomically, read strictly, added up before anything is
divided."""

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
    """Anything that can be written as one row."""

    def to_json(self) -> dict[str, Any]: ...


def write_rows(path: Path, rows: Iterable[Row | Mapping[str, Any]], **more: Any) -> None:
    """Writes {"rows": […], **more} to `path`, atomically; numbers that are not finite become
    null."""
    plain = [dict(row) if isinstance(row, Mapping) else row.to_json() for row in rows]
    write_json_file(path, {"rows": plain, **more})


def read_rows(path: Path, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns the rows in `path`; raises InputError where it is no such file or a row lacks a
    `required` key."""
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
    """Returns perplexity exp(Σ nll / Σ tokens) over all documents per value of `by`, in order of
    appearance.

    `last_quarter` takes the sums over the last quarter of the context. A sum that is not a number
    (null) gives NaN.
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
