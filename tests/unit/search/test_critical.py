"""LongRoPE2's space: its closed form against published factors, and what is free in it."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.rope import published_factors, published_names
from megatron_longrope.search import Candidate, CriticalSpace, theoretical_critical_pair

SPACE = CriticalSpace.extension(32, 8.0, 13)


def test_published_llama3_factors_have_the_closed_form_below_pair_33() -> None:
    (name,) = [name for name in published_names() if "llama3" in name.lower()]
    factors = published_factors(name)
    published = np.array(factors.rescale)
    critical = 33
    expected = published[critical] ** (np.arange(critical) / critical)
    np.testing.assert_allclose(published[:critical], expected, atol=5e-5)
    assert theoretical_critical_pair(factors.head_dim, factors.base, factors.original_length) == 35


def test_pairs_below_the_critical_one_follow_it() -> None:
    candidate = SPACE.project(Candidate((1.0,) * 13 + (8.5,) + (12.0,) * 18))
    assert candidate.rescale[13:] == (8.5,) + (12.0,) * 18
    np.testing.assert_allclose(candidate.rescale[:13], 8.5 ** (np.arange(13) / 13), rtol=1e-12)
    assert SPACE.contains(candidate) and SPACE.admits(candidate)
    other = Candidate((1.0, *candidate.rescale[1:]), 0, 1.0)
    assert SPACE.admits(other) and not SPACE.admits(Candidate((0.9, *candidate.rescale[1:])))
    assert not SPACE.admits(Candidate((1.0, 1.1, *candidate.rescale[2:])))


def test_bounds_are_s_and_2s_from_the_critical_pair_on() -> None:
    low, high = SPACE.bounds
    assert set(low[13:]) == {8.0} and set(high[13:]) == {16.0}
    np.testing.assert_allclose(low[:13], 8.0 ** (np.arange(13) / 13))


def test_gradients_of_dependent_pairs_reach_the_critical_one() -> None:
    gradient = np.arange(32.0)

    def loss(log_free: np.ndarray) -> float:
        rescale = SPACE.shape(np.concatenate([np.ones(13), np.exp(log_free)]))
        return float(gradient @ np.log(rescale))

    at = np.linspace(np.log(8.0), np.log(15.0), 19)
    rescale = SPACE.shape(np.concatenate([np.ones(13), np.exp(at)]))
    found = SPACE.pull_back(gradient / rescale, rescale)
    assert not found[:13].any()
    for i in range(19):
        step = 1e-6 * (np.arange(19) == i)
        assert (loss(at + step) - loss(at - step)) / 2e-6 == pytest.approx(found[13 + i], rel=1e-6)


@pytest.mark.parametrize("critical", [0, 32, 40])
def test_a_critical_pair_outside_the_head_is_refused(critical: int) -> None:
    with pytest.raises(InputError, match="between 1 and 31"):
        CriticalSpace.extension(32, 8.0, critical)
