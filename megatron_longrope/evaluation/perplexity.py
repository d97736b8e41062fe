"""Perplexity over a whole context, by position in it, and over its last quarter.

Documents are read in one pass from the first token on, or through a sliding window. Sums of
negative log-likelihood and numbers of predictions are kept apart and divided once, at the very end:
a mean of document means would weigh tokens of short documents more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.artifacts.rows import EvaluationLabels, PerplexityRow, PositionRow
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.documents import EvaluationDocument, Tokens, check_documents
from megatron_longrope.evaluation.sliding_window import SlidingWindow
from megatron_longrope.evaluation.spread import spread
from megatron_longrope.evaluation.tasks.base import DEFAULT_BATCH_TOKENS
from megatron_longrope.model import LongRopeModel, score_documents


@dataclass(frozen=True)
class PerplexityMeasurement:
    """What one method measures at one length."""

    rows: list[PerplexityRow]
    """One row per document."""
    positions: list[PositionRow]
    """One row per bucket of positions, summed over all documents."""


def measure_perplexity(
    model: LongRopeModel,
    documents: Sequence[EvaluationDocument],
    length: int,
    labels: EvaluationLabels,
    *,
    sliding: SlidingWindow | None = None,
    bucket_tokens: int | None = None,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> PerplexityMeasurement:
    """Measures the model under the factors in force on the first `length` tokens of each document.

    Documents are spread over the data-parallel groups; every rank returns the same rows, of
    length − 1 predictions per document. Raises InputError for a document shorter than `length`.

    >>> chosen = [EvaluationDocument("a", documents[0])]
    >>> measured = measure_perplexity(model, chosen, 64, EvaluationLabels("tiny", "none"))
    >>> [(row.document, row.tokens) for row in measured.rows]
    [('a', 63)]

    Args:
        model: The model, with the factors to measure set.
        documents: Whole documents, each with a name of its own.
        length: Tokens of each document to read.
        labels: What the rows say of themselves: model, method, and whose attention factor.
        sliding: Windows to read through; by default each document is read in one pass.
        bucket_tokens: Width of a position bucket in tokens; by default a sixteenth of `length`.
        max_batch_tokens: Short documents share a forward pass up to this many tokens.
    """
    check_documents(documents, [length])
    losses = token_losses(
        model, [document.prefix(length) for document in documents], sliding, max_batch_tokens
    )
    return rows_of_losses(
        documents, losses, length, labels, sliding=sliding, bucket_tokens=bucket_tokens
    )


def rows_of_losses(
    documents: Sequence[EvaluationDocument],
    losses: Sequence[NDArray[np.float64]],
    length: int,
    labels: EvaluationLabels,
    *,
    sliding: SlidingWindow | None = None,
    bucket_tokens: int | None = None,
) -> PerplexityMeasurement:
    """Returns the rows of losses that were measured, by whichever model.

    Args:
        documents: The documents that were read.
        losses: Nats [length − 1] of each document's predictions.
        length: Tokens of each document that were read.
        labels: What the rows say of themselves: model, method, and whose attention factor.
        sliding: The windows that were read through, if any.
        bucket_tokens: Width of a position bucket in tokens; by default a sixteenth of `length`.
    """
    rows = [
        _row(document, nll, length, labels, sliding)
        for document, nll in zip(documents, losses, strict=True)
    ]
    width = bucket_tokens if bucket_tokens is not None else max(1, length // 16)
    return PerplexityMeasurement(rows, _position_rows(losses, length, labels, width))


def token_losses(
    model: LongRopeModel,
    documents: Sequence[Tokens],
    sliding: SlidingWindow | None = None,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> list[NDArray[np.float64]]:
    """Returns the nats [tokens − 1] of each document's predictions; entry i is of token i + 1.

    Every rank returns the same. The units of work do not depend on the number of ranks, so neither
    does any bit of the result.
    """
    # one pass over a whole document is a window that is longer than the longest document
    protocol = sliding or SlidingWindow(max(map(len, documents), default=2) + 1, 1)
    pieces = [
        (index, span)
        for index, tokens in enumerate(documents)
        for span in protocol.spans(len(tokens))
    ]
    inputs = [documents[index][start:stop] for index, (start, stop, _) in pieces]
    units = _units(inputs, max_batch_tokens)
    scored = spread(model.runtime, units, lambda unit: _score(model, unit, max_batch_tokens))
    losses = [np.full(len(tokens) - 1, np.nan) for tokens in documents]
    flat = (nll for unit in scored for nll in unit)
    for (index, (start, stop, new)), nll in zip(pieces, flat, strict=True):
        losses[index][new - 1 : stop - 1] = nll[new - start - 1 :]
    return losses


def last_quarter(length: int) -> slice:
    """Returns which of the length − 1 predictions fall on the last quarter of the context.

    At least one does, however short the context.

    >>> last_quarter(8)
    slice(5, 7, None)
    """
    return slice(length - 1 - max(1, length // 4), length - 1)


def _units(inputs: Sequence[Tokens], max_tokens: int) -> list[list[Tokens]]:
    """Groups neighbours of up to `max_tokens` in all, each scored by one data-parallel group."""
    units: list[list[Tokens]] = []
    room = 0
    for tokens in inputs:
        if len(tokens) > room or not units:
            units.append([])
            room = max_tokens
        units[-1].append(tokens)
        room -= len(tokens)
    return units


def _score(
    model: LongRopeModel, unit: Sequence[Tokens], max_batch_tokens: int
) -> list[NDArray[np.float64]]:
    scores = score_documents(model, unit, max_batch_tokens=max_batch_tokens)
    return [score.nll.astype(np.float64) for score in scores]


def _row(
    document: EvaluationDocument,
    nll: NDArray[np.float64],
    length: int,
    labels: EvaluationLabels,
    sliding: SlidingWindow | None,
) -> PerplexityRow:
    quarter = nll[last_quarter(length)]
    return PerplexityRow(
        **asdict(labels),
        length=length,
        document=document.name,
        tokens=len(nll),
        nll_sum=float(nll.sum()),
        last_quarter_tokens=len(quarter),
        last_quarter_nll_sum=float(quarter.sum()),
        window=sliding.window if sliding else None,
        stride=sliding.stride if sliding else None,
    )


def _position_rows(
    losses: Sequence[NDArray[np.float64]], length: int, labels: EvaluationLabels, width: int
) -> list[PositionRow]:
    """Returns sums over all documents, by bucket of the predicted token's position.

    Position 0 is never predicted: the first bucket has one prediction less than the others.
    """
    if width < 1:
        raise InputError("bucket_tokens", width, "must be 1 token or more")
    total = np.sum(losses, axis=0)
    rows = []
    for start in range(0, length, width):
        stop = min(start + width, length)
        part = total[max(start, 1) - 1 : stop - 1]
        if len(part):
            rows.append(
                PositionRow(
                    **asdict(labels),
                    length=length,
                    bucket_start=start,
                    bucket_end=stop,
                    tokens=len(part) * len(losses),
                    nll_sum=float(part.sum()),
                )
            )
    return rows
