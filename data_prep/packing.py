"""Packs documents into rows, best fit decreasing ("Fewer Truncations…", arXiv 2404.10830)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_longrope.errors import InputError


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one document."""

    document: int
    """Number of the document."""
    start: int
    """First token of the run in the document."""
    length: int
    """Number of tokens."""


@dataclass(frozen=True)
class PackingPlan:
    """The pieces of every row, and the pieces left out for being too short."""

    sequence_length: int
    """Most tokens of a row."""
    rows: list[list[Piece]]
    left_out: list[Piece]

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows."""
        return sum(piece.length for row in self.rows for piece in row)

    @property
    def unused(self) -> int:
        """Number of places in rows that hold no token."""
        return len(self.rows) * self.sequence_length - self.tokens


def plan_packing(
    lengths: Sequence[int], sequence_length: int, min_piece: int = 1, short_limit: int = 0
) -> PackingPlan:
    """Returns a plan that packs documents of these lengths (in tokens) into rows.

    A document longer than a row is cut into row-long pieces and a rest. Pieces are placed longest
    first, each into the row with the least room that still takes it. Pieces shorter than
    `min_piece` tokens are left out and listed. Pieces of at most `short_limit` tokens never share
    a row with longer ones.

    >>> plan = plan_packing([5, 12, 3], sequence_length=8)
    >>> [[(piece.document, piece.start, piece.length) for piece in row] for row in plan.rows]
    [[(1, 0, 8)], [(0, 0, 5), (2, 0, 3)], [(1, 8, 4)]]
    """
    if sequence_length < 1:
        raise InputError("sequence_length", sequence_length, "must be 1 or more")
    if not 1 <= min_piece <= sequence_length:
        raise InputError(
            "min_piece", min_piece, f"must lie between 1 and the sequence length {sequence_length}"
        )
    pieces = [
        Piece(document, start, min(sequence_length, length - start))
        for document, length in enumerate(lengths)
        for start in range(0, length, sequence_length)
    ]
    kept = [piece for piece in pieces if piece.length >= min_piece]
    left_out = [piece for piece in pieces if piece.length < min_piece]
    long = [piece for piece in kept if piece.length > short_limit]
    short = [piece for piece in kept if piece.length <= short_limit]
    rows = _rows(long, sequence_length) + _rows(short, sequence_length)
    return PackingPlan(sequence_length, rows, left_out)


def _rows(pieces: Sequence[Piece], sequence_length: int) -> list[list[Piece]]:
    assignment, num_rows = best_fit_decreasing([piece.length for piece in pieces], sequence_length)
    rows: list[list[Piece]] = [[] for _ in range(num_rows)]
    for piece, row in zip(pieces, assignment, strict=True):
        rows[row].append(piece)
    return rows


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> tuple[np.ndarray, int]:
    """Returns the row of each item, [items] int64, and the number of rows.

    Rows are kept in buckets by their room. Finding the fullest row that takes an item costs two
    operations on integers of about √capacity bits, whatever the number of rows. Of several rows
    with the same room, the one opened or filled last is taken.
    """
    rows = np.zeros(len(lengths), dtype=np.int64)
    num_rows = 0
    by_room: dict[int, list[int]] = {}
    rooms = _IntegerSet(capacity)
    sizes = np.asarray(lengths, dtype=np.int64)
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        room = rooms.at_least(size)
        if room is None:  # no row has enough room: a new one
            row, room, num_rows = num_rows, capacity, num_rows + 1
        else:
            row = by_room[room].pop()
            if not by_room[room]:
                rooms.remove(room)
        rows[item] = row
        if room > size:
            by_room.setdefault(room - size, []).append(row)
            rooms.add(room - size)
    return rows, num_rows


class _IntegerSet:
    """A set of integers from 0 to `largest` that quickly finds its least member above a value.

    Members are bits in words of about √largest bits; a second level has one bit for each word
    that is not zero. So a search reads the rest of one word, then the second level, then one word.
    """

    def __init__(self, largest: int) -> None:
        self._shift = (largest.bit_length() + 1) // 2
        self._mask = (1 << self._shift) - 1
        self._words = [0] * ((largest >> self._shift) + 1)
        self._occupied = 0

    def add(self, value: int) -> None:
        word = value >> self._shift
        self._words[word] |= 1 << (value & self._mask)
        self._occupied |= 1 << word

    def remove(self, value: int) -> None:
        word = value >> self._shift
        self._words[word] &= ~(1 << (value & self._mask))
        if not self._words[word]:
            self._occupied &= ~(1 << word)

    def at_least(self, value: int) -> int | None:
        """Returns the least member that is `value` or more; None where there is none."""
        word = value >> self._shift
        here = self._words[word] >> (value & self._mask)
        if here:
            return value + _lowest_bit(here)
        above = self._occupied >> (word + 1)
        if not above:
            return None
        word += 1 + _lowest_bit(above)
        return (word << self._shift) + _lowest_bit(self._words[word])


def _lowest_bit(bits: int) -> int:
    """Returns the number of the lowest bit set; `bits & -bits` has that bit alone."""
    return (bits & -bits).bit_length() - 1
