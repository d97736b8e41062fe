"""The ramp's place: read from YaRN's own factors, found on a loss that has its best elsewhere,
absent where flat."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_longrope.rope import RopeGeometry, Yarn
from megatron_longrope.search import (
    Candidate,
    Evaluation,
    MemoryJournal,
    SearcherChoice,
    SearchSpace,
    SearchTask,
    Terms,
    run_search,
)
from megatron_longrope.search.ramp import Ramp, RampSettings

SCALE = 8.0
GEOMETRY = RopeGeometry(base=10000.0, head_dim=64, original_length=256)
SPACE = SearchSpace.first_stage(GEOMETRY.num_pairs, SCALE)


def yarn(**ramp: float) -> Candidate:
    factors = Yarn(scale=SCALE, truncate=False, **ramp).factors(GEOMETRY)
    return Candidate(factors.rescale, 0, 1.2)


def places(start: Candidate, space: SearchSpace = SPACE, **settings: float) -> list[Candidate]:
    return Ramp(space, start, RampSettings.model_validate(settings)).next_round(start, {start})


def test_yarns_ramp_moved_is_yarns_with_other_turns() -> None:
    """A step of one pair at the end is YaRN with β_slow divided by what one pair is of a
    frequency."""
    ratio = GEOMETRY.base ** (1 / GEOMETRY.num_pairs)
    fast, slow = 32 / ratio, 1 / ratio
    wanted = [yarn(beta_slow=slow), yarn(beta_fast=fast), yarn(beta_fast=fast, beta_slow=slow)]
    found = places(yarn(), first_step=1 / GEOMETRY.num_pairs)
    for moved in wanted:
        nearest = min(np.max(np.abs(np.log(c.rescale) - np.log(moved.rescale))) for c in found)
        assert (
            nearest < 0.006 < np.max(np.abs(np.log(yarn().rescale) - np.log(moved.rescale)))
        )  # half of 0.01 at 1


@pytest.mark.parametrize(("fast", "slow"), [(4.0, 0.7), (64.0, 2.0), (10.0, 1.5)])
def test_the_default_searcher_moves_to_the_best_ramp(fast: float, slow: float) -> None:
    target = np.log(yarn(beta_fast=fast, beta_slow=slow).rescale)

    def objective(candidates: list[Candidate], terms: Terms) -> list[Evaluation]:
        return [
            Evaluation((100 + float(np.square(np.log(c.rescale) - target).sum()),), (100,))
            for c in candidates
        ]

    settings = {"descent": {"passes": 1, "checks": 1}}
    choice = SearcherChoice.model_validate({"name": "hybrid", **settings})
    searcher = choice.build(SPACE, [yarn()], 1, SearchTask(2048, SCALE, num_documents=1))
    outcome = run_search(searcher, objective, MemoryJournal())
    moved = [told for told in searcher.history if told.origin == "ramp"]
    assert len(moved) <= RampSettings().most_evaluations
    start = float(np.square(np.log(yarn().rescale) - target).sum())
    assert float(np.square(np.log(outcome.best.rescale) - target).sum()) < 0.03 * start


def test_without_descents_the_search_ends_with_its_ramp() -> None:
    def objective(candidates: list[Candidate], terms: Terms) -> list[Evaluation]:
        assert not terms.gradient
        return [Evaluation((sum(candidate.rescale),), (100,)) for candidate in candidates]

    settings = {"ramp": {"max_rounds": 3}, "cycles": 0}
    choice = SearcherChoice.model_validate({"name": "hybrid", **settings})
    searcher = choice.build(SPACE, [yarn()], 1, SearchTask(2048, SCALE, num_documents=1))
    run_search(searcher, objective, MemoryJournal())
    assert {told.origin for told in searcher.history[1:]} == {"ramp"} and searcher.round_number == 4


def test_above_fine_tuned_factors_the_ramp_multiplies_them() -> None:
    tuned = yarn().rescale
    space = SearchSpace.second_stage(tuned, 4 * SCALE)
    inner = Yarn(scale=4.0, truncate=False).factors(GEOMETRY).rescale
    start = Candidate(tuple(a * b for a, b in zip(tuned, inner, strict=True)), 0, 1.2)
    found = places(start, space)
    assert found
    for candidate in found:
        ratio = np.array(candidate.rescale) / tuned
        assert space.admits(candidate)
        assert (
            np.all(np.diff(ratio) > -0.01)
            and 0.99 < ratio[0] < 1.3
            and np.isclose(ratio[-1], 4, rtol=2e-3)
        )


@pytest.mark.parametrize("start", [(1.0,) * 32, (8.0,) * 32], ids=["none", "pi"])
def test_a_flat_start_has_no_ramp(start: tuple[float, ...]) -> None:
    assert places(Candidate(start, 0, 1.0)) == []


def test_no_rounds_no_moves() -> None:
    assert places(yarn(), max_rounds=0) == []
