"""Rows of the evaluation files, as far as the report reads them: strict about types; unknown keys
are ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from megatron_longrope.artifacts.records import (
    Count,
    FileRecord,
    RecordT,
    Tokens,
    as_record,
    read_record,
)

Nats = Annotated[float, Field(ge=0, allow_inf_nan=False)]


MAX_LOSS = 700.0
"""Nats per token whose exponential still is a float."""


class PerplexityRow(FileRecord):
    """One document scored by one method at one length: Σ negative log-likelihood in nats over
    `tokens` predictions.

    The sum is null where it was not a finite number. With `window` and `stride` it is of a sliding
    window.
    """

    model: str
    method: str
    temperature: str = "own"
    length: Tokens
    document: str
    tokens: Tokens
    nll_sum: Nats | None
    window: Tokens | None = None
    stride: Tokens | None = None


class PositionRow(FileRecord):
    """Negative log-likelihood of the predictions at positions [bucket_start, bucket_end) of a
    context of `length`."""

    model: str
    method: str
    temperature: str = "own"
    length: Count = 0
    bucket_start: Count
    bucket_end: Tokens
    tokens: Tokens
    nll_sum: Nats | None


class PasskeyRow(FileRecord):
    """Retrievals tried and exact matches at one context length and one depth (0 = start, 1 = end of
    the context)."""

    model: str
    method: str
    length: Tokens
    depth: Annotated[float, Field(ge=0, le=1)]
    trials: Tokens
    correct: Count


class Rows(FileRecord):
    """The envelope of every evaluation file."""

    rows: tuple[dict[str, Any], ...]


def read_rows(path: Path, kind: type[RecordT]) -> list[RecordT]:
    """Returns the rows of an evaluation file, `{"rows": [...]}`."""
    envelope = read_record(path, Rows)
    return [as_record(row, kind, path, f"row {index}") for index, row in enumerate(envelope.rows)]
