"""How two scorings of the same candidates are compared: against Spearman's formula and pairs
counted one by one."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fp8_ranking import compare


@given(st.permutations(list(range(8))), st.floats(-1e-6, 1e-6))
def test_ranks_and_pairs(order: list[int], noise: float) -> None:
    reference = [2.0 + 0.01 * place for place in range(8)]
    tested = [3.0 + 0.02 * place + noise for place in order]
    ranking = compare(reference, tested)
    squares = sum((place - other) ** 2 for place, other in enumerate(order))
    assert ranking.rank_correlation == pytest.approx(1 - 6 * squares / (8 * 63))
    swapped = [(i, j) for i, j in combinations(range(8), 2) if order[i] > order[j]]
    assert ranking.swapped_pairs == len(swapped)
    assert ranking.order_kept == (not swapped)
    assert ranking.best_kept == (order[0] == 0)
    assert ranking.largest_swapped_gap == pytest.approx(
        max((0.01 * (j - i) for i, j in swapped), default=0.0)
    )


def test_a_shift_of_all_losses_keeps_the_order() -> None:
    ranking = compare([1.0, 3.0, 2.0], [1.5, 3.5, 2.5])
    assert ranking.order_kept and ranking.rank_correlation == pytest.approx(1.0)
    assert ranking.largest_difference == pytest.approx(0.5) and ranking.largest_swapped_gap == 0.0
