"""Where documents lie in a rank's share, and how its keys and values are cut in pieces to travel.

A share holds, document after document, the document's early chunk and then its late chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_longrope.model.attention.context_exchange import Pair


class DocumentRun(NamedTuple):
    """Neighbouring documents of equal length: they go through a kernel as one batch."""

    rows: slice
    """The documents' tokens among all tokens of the share."""
    length: int
    """Tokens of each document in the share."""

    @property
    def num_documents(self) -> int:
        """Number of documents in the run."""
        return (self.rows.stop - self.rows.start) // self.length if self.length else 0

    def of(self, x: Tensor) -> Tensor:
        """Returns the run's part of x [tokens, heads, head_dim] as a view.

        The view is [documents, heads, length, head_dim].
        """
        documents: Tensor = x[self.rows].unflatten(0, (-1, self.length))
        return documents.transpose(1, 2)


Runs = tuple[DocumentRun, ...]


def runs_of(document_lengths: Sequence[int], size: int) -> Runs:
    """Returns the runs of one rank's share of documents cut over `size` ranks.

    >>> [(run.num_documents, run.length) for run in runs_of([64, 64, 32], size=2)]
    [(2, 32), (1, 16)]
    """
    return _lay_out(
        (length // size, sum(1 for _ in same)) for length, same in groupby(document_lengths)
    )


def cut_runs(runs: Runs, num_pieces: int) -> list[Runs]:
    """Returns where each run's keys lie within each of `num_pieces` pieces.

    A piece has a part of every document's early chunk and the same part of its late chunk, in this
    order. So a piece is the same work for the ranks that need the early chunks alone and for those
    that need both. A document shorter than the number of pieces has length 0 in some of them.
    """
    if num_pieces == 1:
        return [runs]
    return [
        _lay_out(
            (2 * (stop - start), run.num_documents)
            for run, (start, stop) in _parts(runs, piece, num_pieces)
        )
        for piece in range(num_pieces)
    ]


def cut_keys(own: Pair, runs: Runs, num_pieces: int) -> Iterator[Pair]:
    """Yields copies of the pieces that `cut_runs` describes; a single piece is `own` itself."""
    if num_pieces == 1:
        yield own
        return
    for piece in range(num_pieces):
        parts = list(_parts(runs, piece, num_pieces))
        key, value = (
            torch.cat([_part(x, run, bounds) for run, bounds in parts], dim=1) for x in own
        )
        yield key, value


def _parts(
    runs: Runs, piece: int, num_pieces: int
) -> Iterator[tuple[DocumentRun, tuple[int, int]]]:
    """Yields each run with the bounds, within each of its chunks, of what goes into the piece."""
    for run in runs:
        chunk = run.length // 2
        yield run, (chunk * piece // num_pieces, chunk * (piece + 1) // num_pieces)


def _part(x: Tensor, run: DocumentRun, bounds: tuple[int, int]) -> Tensor:
    chunks: Tensor = x[:, run.rows].unflatten(1, (run.num_documents, 2, run.length // 2))
    return chunks[:, :, :, slice(*bounds)].flatten(1, 3)


def _lay_out(lengths_and_counts: Iterator[tuple[int, int]]) -> Runs:
    runs, start = [], 0
    for length, count in lengths_and_counts:
        runs.append(DocumentRun(slice(start, start + length * count), length))
        start += length * count
    return tuple(runs)
