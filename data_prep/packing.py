"""Best-fit-decreasing packing of documents into rows ("Fewer Truncations", arXiv 2404.10830)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_longrope.errors import InputError


@dataclass(frozen=True)
class Piece:
    """`length` tokens of document number `document`, from token `start` of it on."""

    document: int
    start: int
    length: int


@dataclass(frozen=True)
class PackingPlan:
    """Which pieces lie in which row, and which were left out for being short."""

    sequence_length: int
    rows: list[list[Piece]]
    left_out: list[Piece]

    @property
    def tokens(self) -> int:
        return sum(piece.length for row in self.rows for piece in row)

    @property
    def unused(self) -> int:
        """Row space no token lies in, in tokens."""
        return len(self.rows) * self.sequence_length - self.tokens


def plan_packing(
    lengths: Sequence[int], sequence_length: int, min_piece: int = 1, short_limit: int = 0
) -> PackingPlan:
    """Returns where every token of documents of `lengths` goes.

    A document longer than a row is cut into row-long pieces and a rest; pieces go longest first,
    each into the row with the least room that still takes it. Pieces shorter than `min_piece`
    tokens are left out and listed. Pieces of at most `short_limit` tokens never share a row with
    longer ones.
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
    return PackingPlan(
        sequence_length, _rows(long, sequence_length) + _rows(short, sequence_length), left_out
    )


def _rows(pieces: Sequence[Piece], sequence_length: int) -> list[list[Piece]]:
    assignment, num_rows = best_fit_decreasing([piece.length for piece in pieces], sequence_length)
    rows: list[list[Piece]] = [[] for _ in range(num_rows)]
    for piece, row in zip(pieces, assignment, strict=True):
        rows[row].append(piece)
    return rows


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> tuple[np.ndarray, int]:
    """Returns each item's row, [items] int64, and the number of rows.

    Every row's room is kept in a bucket; finding the fullest row that takes an item costs two
    operations on integers of about √capacity bits, whatever the number of rows. Ties: the row
    opened or filled last.
    """
    rows = np.zeros(len(lengths), dtype=np.int64)
    num_rows = 0
    by_room: dict[int, list[int]] = {}
    rooms = _IntegerSet(capacity)
    sizes = np.asarray(lengths, dtype=np.int64)
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        room = rooms.at_least(size)
        if room is None:
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
    """A set of integers from 0 to `largest` that finds its least member at or above a value: bits
    in two levels."""

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
    return (bits & -bits).bit_length() - 1
