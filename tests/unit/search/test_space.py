"""The search space: exact grid, bounds on and off it, projection."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope.errors import InputError
from megatron_longrope.search import (
    PAPER_START_TOKENS,
    SEARCHED_ATTENTION_FACTORS,
    Candidate,
    SearchSpace,
    grid,
)
from megatron_longrope.search.variation import crossover, draw_genome, mutate

lambdas = st.floats(min_value=0.5, max_value=90.0)


@st.composite
def spaces(make) -> SearchSpace:
    """Spaces of 1 to 6 pairs whose bounds lie anywhere, on the grid and off it."""
    lower = make(st.lists(lambdas, min_size=1, max_size=6))
    highest = max(lower)
    upper = [highest + make(st.floats(min_value=0, max_value=20)) for _ in lower]
    factors = make(st.sampled_from([(1.0,), (1.2079,), SEARCHED_ATTENTION_FACTORS]))
    return SearchSpace(
        tuple(lower), tuple(upper), start_tokens=(0, 1, 4), attention_factors=factors
    )


def check_inside(space: SearchSpace, candidate: Candidate) -> None:
    """The definition of the space, said again without its integers."""
    rescale = np.array(candidate.rescale)
    assert np.all(np.diff(rescale) >= 0)
    tolerance = 1e-9 * rescale
    assert np.all(rescale >= np.array(space.lower) - tolerance) and np.all(
        rescale <= np.array(space.upper) + tolerance
    )
    for value in candidate.rescale:
        on_grid = Decimal(repr(value)) % Decimal("0.01") == 0
        assert on_grid or value in space.lower or value in space.upper
    assert (
        candidate.start_tokens in space.start_tokens
        and candidate.attention_factor in space.attention_factors
    )


def test_grid_holds_the_floats_a_person_would_write():
    assert grid(1.0, 1.3, 0.01) == tuple(float(f"1.{k:02d}") for k in range(31))
    assert grid(1.061, 1.089, 0.01) == (1.07, 1.08)
    assert all(
        value == float(f"{k / 100:.2f}")
        for k, value in zip(range(100, 64001), grid(1, 640, 0.01), strict=True)
    )


@given(spaces(), st.data())
def test_projection_lands_inside_and_moves_nothing_that_is_inside(space, data):
    wanted = Candidate(
        tuple(data.draw(st.lists(lambdas, min_size=space.num_pairs, max_size=space.num_pairs))),
        data.draw(st.integers(0, 300)),
        data.draw(st.floats(min_value=0.5, max_value=2.0)),
    )
    projected = space.project(wanted)
    check_inside(space, projected)
    assert space.contains(projected)
    assert space.project(projected) == projected
    if space.contains(wanted):
        assert projected == wanted


@given(spaces(), st.integers(0, 2**32), st.floats(min_value=0.05, max_value=1.0))
@settings(max_examples=60)
def test_every_variation_stays_inside(space, seed, probability):
    rng = np.random.default_rng(seed)
    first, second = draw_genome(space, rng), draw_genome(space, rng)
    for genome in (first, mutate(space, first, probability, rng), crossover(first, second, rng)):
        assert space.allows(genome)
        check_inside(space, space.decode(genome))
        assert np.array_equal(space.encode(space.decode(genome)), genome)


def test_projection_of_a_monotone_candidate_is_the_nearest_grid_point():
    space = SearchSpace.first_stage(4, 8)
    projected = space.project(Candidate((1.004, 2.718281, 7.996, 99.0), 3, 1.2079))
    assert projected == Candidate((1.0, 2.72, 8.0, 10.0), 0, 1.21)


def test_projection_makes_decreasing_factors_equal_to_their_mean():
    space = SearchSpace.first_stage(4, 8)
    assert space.project(Candidate((1.0, 5.0, 3.0, 8.0))).rescale == (1.0, 4.0, 4.0, 8.0)


@given(st.lists(st.floats(min_value=1.0, max_value=64.0), min_size=1, max_size=8).map(sorted))
@settings(max_examples=20, deadline=None)
def test_second_stage_allows_the_fine_tuned_factors_exactly(fine_tuned):
    space = SearchSpace.second_stage(fine_tuned, scale=512)
    snapped = space.project(Candidate(tuple(fine_tuned)))
    assert np.allclose(snapped.rescale, fine_tuned, rtol=1e-9, atol=0)
    hundredths = [round(value * 100) / 100 for value in fine_tuned]
    assert all(a in (b, c) for a, b, c in zip(snapped.rescale, fine_tuned, hundredths, strict=True))
    assert space.upper == (640.0,) * len(fine_tuned)


def test_off_grid_fine_tuned_factors_are_allowed_bit_for_bit():
    fine_tuned = (1.0, 1.23456789, 7.654321)
    space = SearchSpace.second_stage(fine_tuned, scale=16)
    assert (
        space.contains(Candidate(fine_tuned))
        and space.project(Candidate(fine_tuned)).rescale == fine_tuned
    )
    assert not space.contains(Candidate((1.0, 1.23, 7.654321)))


def test_a_bound_with_rounding_noise_is_the_grid_point():
    space = SearchSpace((1.0700000000000003,), (2.0,))
    assert space.project(Candidate((1.0,))).rescale == (1.07,)


def test_second_stage_upper_bound_covers_factors_beyond_it():
    assert SearchSpace.second_stage((1.0, 70.0), scale=32).upper == (70.0, 70.0)


def test_non_monotone_lower_bounds_act_through_their_running_maximum():
    space = SearchSpace.second_stage((3.0, 2.0, 4.0), scale=8)
    assert space.project(Candidate((1.0, 1.0, 1.0))).rescale == (3.0, 3.0, 4.0)


def test_recovery_bounds():
    assert SearchSpace.recovery((1.0, 2.5, 7.5)).upper == (7.5,) * 3
    assert SearchSpace.recovery((1.0, 2.5, 7.5), upper=3.0).upper == (3.0,) * 3


def test_fixed_temperature_and_start_tokens():
    space = SearchSpace.first_stage(
        2, 8, start_tokens=PAPER_START_TOKENS, attention_factors=(1.1234,)
    )
    assert space.project(Candidate((1.0, 2.0), 100, 1.0)) == Candidate((1.0, 2.0), 128, 1.1234)
    assert not space.contains(Candidate((1.0, 2.0), 100, 1.1234))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (((2.0,), (1.0,)), "upper"),
        (((1.0, 3.0), (4.0, 2.0)), "upper"),
        (((1.0,), (2.0, 3.0)), "upper"),
        (((), ()), "upper"),
        (((float("nan"),), (2.0,)), "lower"),
        (((1.0,), (float("inf"),)), "upper"),
        (((1.0,), (2.0,), 0.0), "step"),
        (((1.0,), (2.0,), 0.01, (1, 0)), "start_tokens"),
        (((1.0,), (2.0,), 0.01, (-1,)), "start_tokens"),
        (((1.0,), (2.0,), 0.01, (0,), ()), "attention_factors"),
        (((1.0,), (2.0,), 0.01, (0,), (0.0, 1.0)), "attention_factors"),
    ],
)
def test_impossible_spaces_are_refused(arguments, field):
    with pytest.raises(InputError) as refused:
        SearchSpace(*arguments)
    assert refused.value.field == field


def test_a_candidate_of_another_head_size_is_refused():
    with pytest.raises(InputError, match="3 pairs"):
        SearchSpace.first_stage(3, 8).project(Candidate((1.0, 2.0)))


@pytest.mark.parametrize(
    "fields",
    [
        {"rescale": ()},
        {"rescale": (0.0,)},
        {"rescale": (float("nan"),)},
        {"rescale": (1.0,), "start_tokens": -1},
        {"rescale": (1.0,), "attention_factor": 0.0},
    ],
)
def test_impossible_candidates_are_refused(fields):
    with pytest.raises(InputError):
        Candidate(**fields)
