"""Searches start and are bounded where the method says; settings without a meaning are refused."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    extension_search,
    first_search,
    methods_compared,
    recovery_search,
    second_interpolation,
    second_search,
)
from megatron_longrope.rope import (
    METHODS,
    FactorSet,
    OwnScaling,
    RopeFactors,
    RopeGeometry,
    RopeMethod,
    Yarn,
    longrope_attention_factor,
)
from megatron_longrope.search import PAPER_START_TOKENS, Candidate, OpenSpace
from tests.support.factor_sets import GEOMETRY, UNSCALED, made_factors


def test_searches_start_where_the_method_says() -> None:
    from megatron_longrope.pipeline.recipe import RecoveryStep

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
        ("recovery", {"space": "open"}, "search.space"),
        ("first", {"starts": ["yarn", "cope"]}, "search.starts"),
        ("first", {"starts": ["cope"], "space": "longrope2"}, "search.starts"),
        ("second", {"starts": ["cope"]}, "search.starts"),
        ("recovery", {"sharper_starts": [1.3]}, "search.sharper_starts"),
        ("recovery", {"searcher": "piecewise"}, "search.searcher"),
        ("first", {"early_stopping": {"ladder": [512, 2048]}}, "search.early_stopping.ladder"),
        ("recovery", {"early_stopping": {"ladder": [256]}}, "search.early_stopping.ladder"),
    ],
)
def test_a_setting_without_a_meaning_in_its_stage_is_refused(
    stage: str, settings: dict[str, object], named: str
) -> None:
    config, tuned = SearchConfig.model_validate(settings), made_factors(2048)
    with pytest.raises(InputError, match=named):
        if stage == "first":
            first_search(config, GEOMETRY, 2048)
        elif stage == "second":
            second_search(config, GEOMETRY, 8192, tuned)
        else:
            recovery_search(config, UNSCALED, 256, tuned, None)


def test_fine_tuned_factors_of_another_model_are_refused() -> None:
    other = made_factors(2048).model_copy(update={"base": 500000.0})
    with pytest.raises(InputError, match=r"base=500000.0: the model's is 10000.0"):
        second_search(SearchConfig(), GEOMETRY, 8192, other)


def test_temperatures_reach_beyond_yarns_own() -> None:
    for scale, last in ((8, 1.3), (32, 1.41)):
        assert (
            first_search(SearchConfig(), GEOMETRY, 256 * scale).space.attention_factors[-1] == last
        )


@pytest.mark.parametrize("searcher", ["cma", "gradient"])
def test_start_tokens_are_refused_where_the_searcher_keeps_them(searcher: str) -> None:
    with pytest.raises(ValueError, match="search_start_tokens"):
        SearchConfig.model_validate({"searcher": searcher, "search_start_tokens": True})


def _second(tuned: RopeFactors, **settings: Any) -> SearchProblem:
    return second_search(SearchConfig.model_validate(settings), GEOMETRY, 8192, tuned)


def test_a_given_temperature_is_in_the_space_exactly() -> None:
    hot = made_factors(2048, temperature=1.45)
    recovery = recovery_search(SearchConfig(), UNSCALED, 256, hot, None)
    assert {1.0, 1.45} <= set(recovery.space.attention_factors)
    assert recovery.space.project(recovery.seeds[0]).attention_factor == 1.45
    odd = made_factors(2048, temperature=1.2081)
    assert (
        1.2081 in recovery_search(SearchConfig(), UNSCALED, 256, odd, None).space.attention_factors
    )
    plain = _second(odd)  # PI and NTK have the tuned temperature
    assert plain.space.attention_factors[:2] == (1.2081, 1.21)
    sharper = _second(odd, starts=["yarn"], sharper_starts=[1.2, 1.6])
    assert 1.6 * 1.2081 in sharper.space.attention_factors
    assert sharper.space.attention_factors[0] == 1.21  # no start is below


def test_fixed_means_the_tuned_length_in_a_recovery() -> None:
    fixed = SearchConfig(attention_factor="fixed")
    space = recovery_search(fixed, UNSCALED, 256, made_factors(2048), None).space
    assert space.attention_factors == (longrope_attention_factor(8.0, 256),)


def test_a_recovery_inherits_the_temperature_of_the_longest_inputs() -> None:
    """Hugging Face's format has one for short and long inputs."""
    inherited, tuned = SearchConfig(attention_factor="inherited"), made_factors(2048)
    problem = recovery_search(inherited, UNSCALED, 256, tuned, None, 1.45)
    assert problem.space.attention_factors == (1.45,)
    assert {problem.space.project(seed).attention_factor for seed in problem.seeds} == {1.45}
    searched = recovery_search(SearchConfig(), UNSCALED, 256, tuned, None, 1.45)
    assert {1.0, 1.1, 1.45} <= set(searched.space.attention_factors)
    assert 1.45 in {seed.attention_factor for seed in searched.seeds}


def test_a_temperature_may_be_given() -> None:
    given = SearchConfig(attention_factor=1.35)
    for problem in (
        first_search(given, GEOMETRY, 2048),
        second_search(given, GEOMETRY, 8192, made_factors(2048)),
        recovery_search(given, UNSCALED, 256, made_factors(2048), None, 1.45),
    ):
        assert problem.space.attention_factors == (1.35,)


@pytest.mark.parametrize("searched", [False, True])
def test_tuned_start_tokens_stay(searched: bool) -> None:
    tuned = made_factors(2048).model_copy(update={"start_tokens": 10})
    recovery = recovery_search(
        SearchConfig(search_start_tokens=searched), UNSCALED, 256, tuned, None
    )
    second = _second(tuned, search_start_tokens=searched)
    for problem in (second, recovery):
        expected = {*PAPER_START_TOKENS, 10} if searched else {10}
        assert set(problem.space.start_tokens) == expected
        assert problem.space.project(problem.seeds[0]).start_tokens == 10
    unscaled = recovery.seeds[2]
    assert unscaled.rescale == (1.0,) * 32  # n̂ says nothing there


def test_a_start_beyond_the_bound_moves_the_bound() -> None:
    steep = made_factors(512, growth=19.0)  # λ up to 20 at twice the window
    problem = second_search(SearchConfig(), GEOMETRY, 2048, steep)
    largest = max(value for seed in problem.seeds for value in seed.rescale)
    assert problem.space.upper[-1] == largest == pytest.approx(80.0)


OWN = OwnScaling(Yarn(scale=2).factor_set(GEOMETRY))
"""A model of window 256 that arrives with YaRN to 512."""


def test_an_arrived_model_is_searched_beyond_its_own_factors() -> None:
    tuned = OWN.tuned
    assert tuned is not None
    problem = extension_search(SearchConfig(), OWN, 2048)
    assert problem.space.lower == tuned.rescale and set(problem.space.upper) == {10.0}
    own = Candidate(tuned.rescale, 0, tuned.attention_factor)
    assert problem.seeds[0] == own and problem.space.contains(own)
    assert [method.name for method in problem.baselines] == [
        *("model", "second-pi", "second-ntk", "second-yarn")
    ]
    assert problem.baselines[0].factors_at(2048) == OWN.factor_set
    pi = problem.baselines[1].factors_at(2048).for_length(2048)
    assert pi.rescale == pytest.approx([4 * value for value in tuned.rescale])
    plain, first = (
        extension_search(SearchConfig(), UNSCALED, 2048),
        first_search(SearchConfig(), GEOMETRY, 2048),
    )
    assert (plain.space, plain.seeds) == (first.space, first.seeds)
    with pytest.raises(InputError, match=r"search\.space"):
        extension_search(SearchConfig(space="longrope2"), OWN, 2048)
    inherited = SearchConfig(attention_factor="inherited")
    assert extension_search(inherited, OWN, 2048).space.attention_factors == (
        tuned.attention_factor,
    )


def test_short_inputs_of_an_arrived_model_go_back_to_its_own_factors() -> None:
    tuned = second_interpolation("yarn", cast(RopeFactors, OWN.tuned), 2048)
    recovery = recovery_search(SearchConfig(), OWN, 512, tuned, None)
    assert recovery.seeds[2].rescale == OWN.for_length(512).rescale
    assert [method.name for method in recovery.baselines] == ["model", "fine-tuned"]
    assert recovery.baselines[0].factors_at(512) == OWN.factor_set
    assert set(recovery.space.upper) == {max(tuned.rescale)}


def test_compared_methods_come_again_under_the_searched_temperature() -> None:
    methods = methods_compared(OWN, 2048, 1.3)
    assert [method.attention_factor for method in methods] == ["own"] * 4 + ["searched"] * 4
    again = methods[4].factors_at(2048).for_length(2048)
    assert again.rescale == OWN.for_length(2048).rescale and again.attention_factor == 1.3


def test_an_open_space_ends_where_pairs_stand_still() -> None:
    opened = SearchConfig(space="open", starts=("yarn", "cope"))
    closed = first_search(SearchConfig(starts=("yarn",)), GEOMETRY, 2048)
    first = first_search(opened, GEOMETRY, 2048)
    assert set(first.space.lower) == {1.0} and set(first.space.upper) == {1e6}
    assert first.space.to_json()["knee"] == closed.space.upper[0] == 10.0
    assert all(seed in first.seeds for seed in closed.seeds)
    tuned = made_factors(2048)
    second = second_search(opened, GEOMETRY, 8192, tuned)
    assert second.space.lower == tuned.rescale
    assert set(second.space.upper) == {2e6}  # λ_ft = 2 of the last pair, times the taper's
    arrived = extension_search(opened, OwnScaling(FactorSet.single(tuned)), 8192)
    assert arrived.space == second.space and arrived.seeds[0].rescale == tuned.rescale


def test_searches_go_on_from_factors_with_pairs_at_a_standstill() -> None:
    """Their spaces need no 10⁸ grid points, and hold the factors exactly."""
    tuned = made_factors(2048)
    tapered = tuned.model_copy(update={"rescale": (*tuned.rescale[:-2], 5000.25, 1e6)})
    recovery = recovery_search(SearchConfig(), UNSCALED, 256, tapered, None)
    second = second_search(SearchConfig(starts=("yarn",)), GEOMETRY, 8192, tapered)
    for problem in (recovery, second):
        assert isinstance(problem.space, OpenSpace) and len(problem.space.values) < 10_000
    assert recovery.space.project(recovery.seeds[0]).rescale[-1] == 1e6
    assert second.space.lower == tapered.rescale
    # YaRN on top: both pairs four times as slow
    assert set(second.space.upper) == {4e6}


def test_a_start_above_the_space_is_refused_and_not_clipped() -> None:
    class Steep(RopeMethod):
        """λ = 2s for every pair."""

        name: ClassVar[str] = "steep"
        starts_searches: ClassVar[bool] = True
        scale: float

        def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
            target = round(self.scale * geometry.original_length)
            return self.make_factors(geometry, (2 * self.scale,) * geometry.num_pairs, target)

    METHODS.register("steep", Steep)
    try:
        config = SearchConfig(starts=("yarn", "steep"))
        with pytest.raises(InputError, match=r"search\.starts=steep: has λ up to 16, above .* 10$"):
            first_search(config, GEOMETRY, 2048)
        opened = first_search(config.model_copy(update={"space": "open"}), GEOMETRY, 2048)
        assert opened.space.project(opened.seeds[1]).rescale[0] == pytest.approx(16, abs=0.03)
    finally:
        METHODS.remove("steep")
