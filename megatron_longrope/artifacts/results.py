"""The result files of evaluations, and perplexities over the rows in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from megatron_longrope.artifacts.records import FileRecord, as_record, read_record
from megatron_longrope.artifacts.rows import (
    EXPORTED,
    ROW_KINDS,
    PerplexityRow,
    PositionRow,
    RetrievalRow,
    Row,
    perplexity_of,
)
from megatron_longrope.atomic import write_json_file
from megatron_longrope.errors import InputError

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass
class NllTotal:
    """Nats and predicted tokens of several rows, and the documents they came from: summed as they
    are, divided once at the very end."""

    sums: list[float] = field(default_factory=list)
    tokens: int = 0
    documents: set[str] = field(default_factory=set)

    def add(self, row: PerplexityRow | PositionRow) -> None:
        """Adds one row's sums."""
        self._add(row.nll_sum, row.tokens)
        if isinstance(row, PerplexityRow):
            self.documents.add(row.document)

    def add_last_quarter(self, row: PerplexityRow) -> None:
        """Adds one row's sums over the last quarter of the context; raises InputError where it has
        none."""
        if row.last_quarter_tokens is None:
            rule = f"a row of {row.document} has no sums over the last quarter"
            raise InputError("last_quarter_tokens", None, rule)
        self._add(row.last_quarter_nll_sum, row.last_quarter_tokens)
        self.documents.add(row.document)

    def _add(self, nll_sum: float | None, tokens: int) -> None:
        self.sums.append(math.inf if nll_sum is None else nll_sum)
        self.tokens += tokens

    @property
    def perplexity(self) -> float:
        """Perplexity exp(Σ nll / Σ tokens), infinite as soon as one sum was not a finite number."""
        return perplexity_of(math.fsum(self.sums), self.tokens)


def aggregate(
    rows: Iterable[PerplexityRow],
    by: Callable[[PerplexityRow], KeyT],
    *,
    last_quarter: bool = False,
) -> dict[KeyT, float]:
    """Returns perplexity over all rows that share a value of `by`, in order of appearance;
    `last_quarter` takes the sums over the last quarter of the context."""
    totals: dict[KeyT, NllTotal] = {}
    for row in rows:
        total = totals.setdefault(by(row), NllTotal())
        if last_quarter:
            total.add_last_quarter(row)
        else:
            total.add(row)
    return {key: total.perplexity for key, total in totals.items()}


@dataclass(frozen=True)
class EvaluationRows:
    """The rows of a run's evaluations by kind, each kind in the order read or measured."""

    perplexity: list[PerplexityRow] = field(default_factory=list)
    positions: list[PositionRow] = field(default_factory=list)
    retrieval: list[RetrievalRow] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> EvaluationRows:
        """Returns `rows` sorted by kind."""
        every = list(rows)
        return cls(
            [row for row in every if isinstance(row, PerplexityRow)],
            [row for row in every if isinstance(row, PositionRow)],
            [row for row in every if isinstance(row, RetrievalRow)],
        )


RowT = TypeVar("RowT", PerplexityRow, RetrievalRow)


def of_the_product(rows: Iterable[RowT]) -> list[RowT]:
    """Returns the rows of the exported folder; of the extended model at lengths without such rows.

    What a run is for is the folder that its users load, so checks judge that.
    """
    every = [row for row in rows if row.method == "longrope"]
    exported = {row.length for row in every if row.model == EXPORTED}
    return [
        row for row in every if row.model == (EXPORTED if row.length in exported else "extended")
    ]


def read_evaluations(folder: Path) -> EvaluationRows:
    """Returns what all JSON files in `folder` hold; raises InputError that names a damaged one."""
    return EvaluationRows.of(
        row for path in sorted(folder.glob("*.json")) for row in read_rows(path)
    )


def read_rows(path: Path) -> list[Row]:
    """Returns the rows in `path`; raises InputError where it is no such file or a row is wrong."""
    rows = read_record(path, _Rows).rows
    return [
        as_record(row, _kind_of(row, path, number), path, f"row {number}")
        for number, row in enumerate(rows)
    ]


class _Rows(FileRecord):
    """What every evaluation file holds."""

    rows: tuple[dict[str, Any], ...]


def _kind_of(row: Mapping[str, Any], path: Path, number: int) -> type[Row]:
    for kind in ROW_KINDS:
        if kind.MARK in row:
            return kind
    marks = ", ".join(kind.MARK for kind in ROW_KINDS)
    raise InputError("file", path, f"row {number} is of no known kind: it has none of {marks}")


def write_rows(path: Path, rows: Iterable[Row], **more: Any) -> None:
    """Writes {"rows": […], **more} to `path`, atomically; numbers that are not finite become
    null."""
    plain = [row.to_json() for row in rows]
    write_json_file(path, {"rows": plain, **more})
