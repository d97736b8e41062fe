"""Searches start and are bounded where the method says; settings without a meaning are refused."""

from __future__ import annotations

import math

import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.searching import first_search, recovery_search, second_search
from megatron_longrope.rope import (
    Yarn,
)
from tests.support.factor_sets import GEOMETRY, UNSCALED, made_factors


def test_searches_start_where_the_method_says() -> None:
    from megatron_longrope.pipeline.recipe import RecoveryStep, SearchConfig

    config = SearchConfig()
    first = first_search(config, GEOMETRY, 2048)
    assert set(first.space.lower) == {1.0} and set(first.space.upper) == {10.0}
    assert any(seed.rescale == Yarn(scale=8.0).factors(GEOMETRY).rescale for seed in first.seeds)
    tuned = made_factors(2048)
    second = second_search(SearchConfig(attention_factor="inherited"), GEOMETRY, 8192, tuned)
    assert second.space.lower == tuned.rescale and set(second.space.upper) == {40.0}
    assert second.space.attention_factors == (1.1,)
    pi = second.seeds[0].rescale
    assert all(math.isclose(b, 4 * a) for a, b in zip(tuned.rescale, pi, strict=True))
    yarn = SearchConfig(starts=("yarn",))
    assert {seed.rescale for seed in first_search(yarn, GEOMETRY, 2048).seeds} == {
        Yarn(scale=8.0).factors(GEOMETRY).rescale
    }
    assert (
        len(second_search(yarn, GEOMETRY, 8192, tuned).seeds) == 2
    )  # at its own and at a sharper temperature
    sharper = SearchConfig(starts=("yarn",), sharper_starts=(1.2, 1.26))
    own, *others = (
        seed.attention_factor for seed in second_search(sharper, GEOMETRY, 8192, tuned).seeds
    )
    assert own == pytest.approx(1.1 * Yarn(scale=4.0).factors(GEOMETRY).attention_factor)
    assert others == pytest.approx([1.2 * 1.1, 1.26 * 1.1])
    with pytest.raises(ValueError, match="a recovery starts from"):
        RecoveryStep(length=256, search=yarn)
    step = RecoveryStep(length=256, search=config)
    assert (
        RecoveryStep.model_validate(step.model_dump(mode="json")) == step
    )  # as a run directory keeps it
    recovery = recovery_search(config, UNSCALED, 256, tuned, None)
    assert set(recovery.space.upper) == {max(tuned.rescale)} and set(recovery.space.lower) == {1.0}


@pytest.mark.parametrize(
    ("stage", "settings", "named"),
    [
        ("first", {"attention_factor": "inherited"}, "search.attention_factor"),
        ("first", {"sharper_starts": [1.3]}, "search.sharper_starts"),
        ("second", {"space": "longrope2", "critical_pair": 5}, "search.space"),
        ("recovery", {"space": "longrope2"}, "search.space"),
        ("recovery", {"sharper_starts": [1.3]}, "search.sharper_starts"),
        ("recovery", {"searcher": "piecewise"}, "search.searcher"),
        ("first", {"early_stopping": {"ladder": [512, 2048]}}, "search.early_stopping.ladder"),
        ("recovery", {"early_stopping": {"ladder": [256]}}, "search.early_stopping.ladder"),
    ],
)
def test_a_setting_without_a_meaning_in_its_stage_is_refused(
    stage: str, settings: dict[str, object], named: str
) -> None:
    from megatron_longrope.pipeline.recipe import SearchConfig

    config, tuned = SearchConfig.model_validate(settings), made_factors(2048)
    with pytest.raises(InputError, match=named):
        if stage == "first":
            first_search(config, GEOMETRY, 2048)
        elif stage == "second":
            second_search(config, GEOMETRY, 8192, tuned)
        else:
            recovery_search(config, UNSCALED, 256, tuned, None)


def test_fine_tuned_factors_of_another_model_are_refused() -> None:
    from megatron_longrope.pipeline.recipe import SearchConfig

    other = made_factors(2048).model_copy(update={"base": 500000.0})
    with pytest.raises(InputError, match=r"base=500000.0: the model's is 10000.0"):
        second_search(SearchConfig(), GEOMETRY, 8192, other)


def test_temperatures_reach_beyond_yarns_own() -> None:
    from megatron_longrope.pipeline.recipe import SearchConfig

    for scale, last in ((8, 1.3), (32, 1.41)):
        assert (
            first_search(SearchConfig(), GEOMETRY, 256 * scale).space.attention_factors[-1] == last
        )


@pytest.mark.parametrize("searcher", ["cma", "gradient"])
def test_start_tokens_are_refused_where_the_searcher_keeps_them(searcher: str) -> None:
    from megatron_longrope.pipeline.recipe import SearchConfig

    with pytest.raises(ValueError, match="search_start_tokens"):
        SearchConfig.model_validate({"searcher": searcher, "search_start_tokens": True})
