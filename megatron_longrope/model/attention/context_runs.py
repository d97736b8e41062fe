"""Where the documents of a share lie, and how its keys and values are cut in pieces for their way
to other ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_longrope.model.attention.context_exchange import Pair


class Run(NamedTuple):
    """Neighbouring documents of one length: `rows` of this rank's tokens, `length` of them per
    document."""

    rows: slice
    length: int

    @property
    def num_documents(self) -> int:
        return (self.rows.stop - self.rows.start) // self.length if self.length else 0

    def of(self, x: Tensor) -> Tensor:
        """Returns this run of x [tokens, heads, head_dim] as a view [documents, heads, length,
        head_dim]."""
        documents: Tensor = x[self.rows].unflatten(0, (-1, self.length))
        return documents.transpose(1, 2)


Runs = tuple[Run, ...]


def runs_of(document_lengths: Sequence[int], size: int) -> Runs:
    """Returns the runs of one rank's share; neighbours of one length share kernel calls."""
    return _lay_out(
        (length // size, sum(1 for _ in same)) for length, same in groupby(document_lengths)
    )


def cut_runs(runs: Runs, num_pieces: int) -> list[Runs]:
    """Returns where each run's keys lie within each of `num_pieces` pieces; a short document's may
    have length 0.

    A piece has a part of every document's early chunk and the same part of its late chunk, in this
    order. So it means the same work to the ranks that need the early chunks alone and to those that
    need both.
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
    """Yields the pieces that `cut_runs` describes, copied; one piece alone is `own` itself."""
    if num_pieces == 1:
        yield own
        return
    for piece in range(num_pieces):
        parts = list(_parts(runs, piece, num_pieces))
        key, value = (
            torch.cat([_part(x, run, bounds) for run, bounds in parts], dim=1) for x in own
        )
        yield key, value


def _parts(runs: Runs, piece: int, num_pieces: int) -> Iterator[tuple[Run, tuple[int, int]]]:
    """Yields each run and the bounds within both its chunks that go into the piece."""
    for run in runs:
        chunk = run.length // 2
        yield run, (chunk * piece // num_pieces, chunk * (piece + 1) // num_pieces)


def _part(x: Tensor, run: Run, bounds: tuple[int, int]) -> Tensor:
    chunks: Tensor = x[:, run.rows].unflatten(1, (run.num_documents, 2, run.length // 2))
    return chunks[:, :, :, slice(*bounds)].flatten(1, 3)


def _lay_out(lengths_and_counts: Iterator[tuple[int, int]]) -> Runs:
    runs, start = [], 0
    for length, count in lengths_and_counts:
        runs.append(Run(slice(start, start + length * count), length))
        start += length * count
    return tuple(runs)
