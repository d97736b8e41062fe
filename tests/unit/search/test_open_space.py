"""The open space: coordinates against numerical derivatives, its grid, and tapers found in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope.search import (
    Candidate,
    Evaluation,
    Gradient,
    MemoryJournal,
    OpenSpace,
    SearcherChoice,
    SearchSpace,
    SearchTask,
    Terms,
    run_search,
)

SCALE = 8.0
KNEE = 1.25 * SCALE
OPEN = OpenSpace.extension(8, SCALE)
CLOSED = SearchSpace.first_stage(8, SCALE)


def test_coordinates_are_log_up_to_the_knee_and_go_on_with_its_slope() -> None:
    below = np.array([1.0, 2.5, KNEE])
    np.testing.assert_allclose(OPEN.coordinates(below), np.log(below), rtol=1e-15)
    above = np.array([KNEE, 12.0, 1e3, 1e6])
    # K/λ is the share of the knee's frequency that is left
    np.testing.assert_allclose(OPEN.coordinates(above), math.log(KNEE) + 1 - KNEE / above)
    slope = (OPEN.coordinates(np.array(KNEE + 1e-6)) - OPEN.coordinates(np.array(KNEE))) / 1e-6
    assert slope == pytest.approx(1 / KNEE, rel=1e-5)
    assert OPEN.coordinate_range == pytest.approx((0.0, math.log(KNEE) + 1 - KNEE / 1e6))


@given(value=st.floats(1.0, 1e6))
@settings(max_examples=50, deadline=None)
def test_coordinates_lead_back_to_lambda(value: float) -> None:
    back = OPEN.rescale_at(OPEN.coordinates(np.array([value])))[0]
    assert back == pytest.approx(value, rel=1e-9)
    assert OPEN.moved(value, 0.0) == pytest.approx(value, rel=1e-9)
    assert OPEN.moved(max(value, KNEE), 1.01) > 1e6  # one e-fold lies above the knee


@pytest.mark.parametrize("space", [OPEN, CLOSED], ids=["open", "closed"])
def test_gradients_are_those_by_coordinates(space: SearchSpace) -> None:
    rescale = np.array([1.5, 2.0, 9.0, 9.9])
    if space is OPEN:
        rescale = np.append(rescale, [11.0, 80.0, 3e3, 2e5])
    weights = np.arange(1.0, len(rescale) + 1)

    def loss(coordinates: np.ndarray) -> float:
        return float(weights @ np.sin(3 / space.rescale_at(coordinates)))

    at = space.coordinates(rescale)
    by_rescale = -weights * np.cos(3 / rescale) * 3 / rescale**2
    found = space.pull_back(by_rescale, rescale)
    for i in range(len(at)):
        step = 1e-7 * (np.arange(len(at)) == i)
        numerical = (loss(at + step) - loss(at - step)) / 2e-7
        assert found[i] == pytest.approx(numerical, rel=1e-5)


def test_the_grid_is_the_closed_spaces_and_thins_out_above_the_knee() -> None:
    closed = CLOSED.values
    np.testing.assert_array_equal(OPEN.values[: len(closed)], closed)
    above = OPEN.values[len(closed) :]
    assert above[-1] == 1e6 and len(above) == len(closed) + 99  # 1000 steps from 1 to 0 in K/λ
    steps = np.diff(OPEN.coordinates(OPEN.values))
    assert np.all(steps > 0) and np.max(steps[len(closed) - 1 :]) < 0.002
    assert all(value == round(value * 100) / 100 for value in above)
    # at twice the target the pair of the window's period still turns by less than 0.0002 rad
    assert 2 * math.pi * 2 * SCALE / OPEN.values[-1] < 2e-4


def test_factors_at_a_standstill_are_bounds_of_a_further_search() -> None:
    tuned = (1.0, 4.0, 8.0, 1e6)
    space = OpenSpace.between(tuned, 2e6, 4 * SCALE)
    assert space.project(Candidate(tuned)).rescale == tuned
    assert len(space.values) < 10_000


def test_its_identity_names_the_knee_and_builds_it_again() -> None:
    header = OPEN.to_json()
    assert header["knee"] == KNEE and "knee" not in CLOSED.to_json()
    again: Any = OpenSpace(**header)
    assert again == OPEN
    np.testing.assert_array_equal(again.values, OPEN.values)


BEST = np.array([1.0, 1.0, 0.6, 0.25, 1 / 8, 1 / 16, 1 / 80, 0.0])
"""1/λ of lowest loss: the last three pairs are slower than a closed space lets them be."""
WEIGHTS = np.array([1.0, 1.0, 1.0, 1.0, 3.0, 10.0, 10.0, 10.0])
YARN = Candidate((1.0, 1.0, 2.0, 5.0, 8.0, 8.0, 8.0, 8.0))
TAPER = Candidate((1.0, 1.0, 1.0, 1.0, 1.2, 3.0, 1e6, 1e6))


def _objective(candidates: Sequence[Candidate], terms: Terms) -> Iterator[Evaluation]:
    """Yields the squared distances of frequencies to the best ones."""
    for candidate in candidates:
        rescale = np.array(candidate.rescale)
        off = 1 / rescale - BEST
        loss = 2 + float(WEIGHTS @ off**2)
        gradient = Gradient(-2 * WEIGHTS * off / rescale**2, 0.0) if terms.gradient else None
        yield Evaluation((100 * loss,), (100,), gradient=gradient)


def _distance(sizes: dict[str, Any], space: SearchSpace, start: Candidate) -> float:
    task = SearchTask(length=2048, scale=SCALE, num_documents=1)
    searcher = SearcherChoice.model_validate(sizes).build(space, [start], 1, task)
    return run_search(searcher, _objective, MemoryJournal()).evaluation.loss - 2


@pytest.mark.parametrize(
    ("sizes", "starts"),
    [
        ({"name": "hybrid"}, (YARN, TAPER)),
        ({"name": "gradient"}, (YARN,)),
        ({"name": "cma"}, (YARN, TAPER)),
        ({"name": "evolution", "iterations": 5}, (YARN,)),
    ],
    ids=["hybrid", "gradient", "cma", "evolution"],
)
def test_a_taper_is_found_in_the_open_space_alone(
    sizes: dict[str, Any], starts: tuple[Candidate, ...]
) -> None:
    """From YaRN and from a taper with fast pairs to mend: the open end is no trap."""
    closed_best = float(WEIGHTS[5:] @ (1 / KNEE - BEST[5:]) ** 2)
    for start in starts:
        assert _distance(sizes, CLOSED, start) > closed_best
        assert _distance(sizes, OPEN, start) < 0.6 * closed_best
