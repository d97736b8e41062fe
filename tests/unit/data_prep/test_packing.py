"""Packing: every token once, rows never overfull, and best-fit decreasing as a slow reference does
it."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing import best_fit_decreasing, plan_packing
from megatron_longrope.errors import InputError


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 200), max_size=60),
    sequence_length=st.integers(1, 64),
    min_piece=st.integers(1, 64),
    short_limit=st.integers(0, 64),
)
def test_every_token_lies_in_one_place(
    lengths: list[int], sequence_length: int, min_piece: int, short_limit: int
) -> None:
    plan = plan_packing(lengths, sequence_length, min(min_piece, sequence_length), short_limit)
    pieces = [piece for row in plan.rows for piece in row]
    seen = Counter(
        (p.document, token)
        for p in pieces + plan.left_out
        for token in range(p.start, p.start + p.length)
    )
    assert seen == Counter(
        (document, token) for document, length in enumerate(lengths) for token in range(length)
    )
    assert all(piece.length < min_piece for piece in plan.left_out)
    assert all(piece.length >= min(min_piece, sequence_length) for piece in pieces)
    assert all(row and sum(piece.length for piece in row) <= sequence_length for row in plan.rows)
    for row in plan.rows:
        assert len({piece.length <= short_limit for piece in row}) == 1
    assert plan.unused == sum(
        sequence_length - sum(piece.length for piece in row) for row in plan.rows
    )


def _slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Rooms of the rows, by the definition: longest first, each where the least room is left
    over."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append(min(fitting, default=capacity) - length)
    return sorted(rooms)


@settings(deadline=None, max_examples=60)
@given(capacity=st.integers(1, 5000), data=st.data())
def test_best_fit_as_defined(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=80))
    rows, num_rows = best_fit_decreasing(lengths, capacity)
    rooms = [capacity] * num_rows
    for row, length in zip(rows, lengths, strict=True):
        rooms[row] -= length
    assert sorted(rooms) == _slow_best_fit(lengths, capacity)


def test_documents_that_fit_are_never_cut() -> None:
    plan = plan_packing([64, 10, 63, 65, 1], 64)
    assert Counter(piece.document for row in plan.rows for piece in row) == {
        0: 1,
        1: 1,
        2: 1,
        3: 2,
        4: 1,
    }


def test_a_hundred_thousand_pieces_in_seconds() -> None:
    lengths = np.random.default_rng(0).integers(1, 1 << 18, 100_000)
    started = time.process_time()
    rows, num_rows = best_fit_decreasing(lengths, 1 << 18)
    assert time.process_time() - started < 10
    assert np.bincount(rows, weights=lengths).max() <= 1 << 18
    assert num_rows * (1 << 18) < 1.01 * lengths.sum()


@pytest.mark.parametrize(("sequence_length", "min_piece"), [(0, 1), (8, 0), (8, 9)])
def test_wrong_sizes_are_refused(sequence_length: int, min_piece: int) -> None:
    with pytest.raises(InputError):
        plan_packing([4], sequence_length, min_piece)
