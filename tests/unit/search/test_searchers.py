"""The contract every searcher keeps: bounds, order, determinism, exact state, results in order, the
best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.search import (
    SEARCHERS,
    Candidate,
    CriticalSpace,
    Evaluation,
    MemoryJournal,
    OpenSpace,
    Searcher,
    SearcherChoice,
    SearchSpace,
    TellError,
    Terms,
    run_search,
)
from megatron_longrope.search.descent import DescentSettings
from megatron_longrope.search.rounds import RoundSearcher
from tests.support.search_stubs import (
    NUM_PAIRS,
    SCALE,
    SEEDS,
    SPACE,
    TASK,
    stub_evaluation,
    stub_objective,
)

EVOLUTION = {"population": 10, "mutants": 4, "crossovers": 4, "parents": 5, "iterations": 3}
SIZES = {
    "hybrid": {"descent": {"passes": 4}, "cycles": 2, "rounds": 2},
    "evolution": EVOLUTION,
    "piecewise": EVOLUTION,
    "gradient": {"passes": 12, "documents_per_step": None},
    "cma": {"iterations": 4, "population": 6},
    "random": {"evaluations": 20},
    "ramp": {"max_rounds": 5},
}
FINE_TUNED = tuple(np.linspace(1.003, 4.0, NUM_PAIRS))
SPACES = {
    "first stage": SPACE,
    "second stage": SearchSpace.second_stage(FINE_TUNED, 4 * SCALE),
    "recovery": SearchSpace.recovery(FINE_TUNED, attention_factors=(1.1,)),
    "longrope2": CriticalSpace.extension(NUM_PAIRS, SCALE, 3),
    "open": OpenSpace.extension(NUM_PAIRS, SCALE),
    "open second stage": OpenSpace.between((*FINE_TUNED[:-1], 1e6), 1e6, 4 * SCALE),
}
searchers = pytest.mark.parametrize("name", list(SEARCHERS))
spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def make(name: str, space: SearchSpace = SPACE, seed: int = 1) -> RoundSearcher[Any]:
    choice = SearcherChoice.model_validate({"name": name, **SIZES[name]})
    return choice.build(space, SEEDS, seed, TASK)


def run(
    searcher: Searcher, batch: int = 100, evaluate: Callable[[Candidate], Evaluation] | None = None
) -> list[Candidate]:
    """Runs `searcher` to its end; returns all it proposed, in order."""
    proposed = []
    while not searcher.finished:
        terms = Terms(searcher.asks_gradient, sample=searcher.sample)
        candidates = searcher.ask(batch)
        for candidate in candidates:
            (evaluation,) = stub_objective([candidate], terms)
            searcher.tell(candidate, evaluate(candidate) if evaluate else evaluation)
        proposed += candidates
    return proposed


@searchers
@spaces
def test_every_candidate_is_in_the_space_and_the_budget_is_kept(
    name: str, space: SearchSpace
) -> None:
    searcher = make(name, space)
    announced = searcher.num_evaluations
    proposed = run(searcher)
    assert all(space.admits(candidate) for candidate in proposed)
    assert len(proposed) == searcher.num_evaluations
    assert announced is not None and len(proposed) <= announced
    assert proposed[: len(searcher.seeds)] == list(searcher.seeds)
    assert searcher.ask(1) == []


@searchers
def test_same_seed_same_history_same_candidates_whatever_the_batch(name: str) -> None:
    assert (
        run(make(name, seed=7), batch=1)
        == run(make(name, seed=7), batch=3)
        == run(make(name, seed=7))
    )


@searchers
@pytest.mark.parametrize("told", [0, 3, 9, 13])
def test_state_round_trip_is_exact(name: str, told: int) -> None:
    first = make(name)
    for _ in range(told):
        terms = Terms(first.asks_gradient, sample=first.sample)
        (candidate,) = first.ask(1)
        first.tell(candidate, stub_objective([candidate], terms)[0])
    first.ask(2)
    second = make(name)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    waiting = [
        proposal.candidate for proposal in first._round[first.num_told_of_round : first._num_asked]
    ]
    for searcher in (first, second):
        for candidate in waiting:
            searcher.tell(
                candidate,
                stub_objective([candidate], Terms(searcher.asks_gradient, sample=searcher.sample))[
                    0
                ],
            )
    assert run(first) == run(second) and first.best == second.best


@searchers
def test_another_searchs_state_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="seed"):
        make(name, seed=2).load_state_dict(make(name, seed=1).state_dict())


@searchers
def test_the_best_is_the_lowest_completed_loss(name: str) -> None:
    searcher = make(name)
    run(searcher)
    assert searcher.best is not None
    completed = [told.evaluation for told in searcher.history if told.evaluation.completed]
    assert searcher.best[1].loss == min(evaluation.loss for evaluation in completed)
    assert all(
        (told.evaluation.sample is None) == told.evaluation.completed for told in searcher.history
    )


@searchers
def test_all_but_random_search_improve_on_their_seeds(name: str) -> None:
    searcher = make(name)
    run(searcher)
    assert searcher.best is not None
    seeds = min(stub_evaluation(seed).loss for seed in searcher.seeds)
    assert searcher.best[1].loss < seeds or name == "random"


@searchers
def test_unusable_results_never_become_the_best(name: str) -> None:
    searcher = make(name)
    run(searcher, evaluate=lambda _: Evaluation((math.nan, 1.0), (100, 50)))
    assert searcher.best is None


@searchers
def test_results_are_told_in_the_order_asked(name: str) -> None:
    searcher = make(name)
    first, second = searcher.ask(2)
    with pytest.raises(TellError, match="out of order"):
        searcher.tell(second, stub_evaluation(second))
    searcher.tell(first, stub_evaluation(first))
    searcher.tell(second, stub_evaluation(second))


@searchers
def test_a_journal_replays_gradients_included(name: str) -> None:
    journal = MemoryJournal()
    whole = run_search(make(name), stub_objective, journal)
    for kept in (1, 5, len(journal.entries) - 1):
        resumed = MemoryJournal(journal.entries[:kept])
        outcome = run_search(make(name), stub_objective, resumed)
        assert outcome.best == whole.best and outcome.recovered == kept
        assert [entry.candidate for entry in resumed.entries] == [
            entry.candidate for entry in journal.entries
        ]


def test_settings_of_another_searcher_are_refused() -> None:
    with pytest.raises(InputError, match=r"population=10: unknown key .*known here: cycles, "):
        build_config(SearcherChoice, {"name": "hybrid", **EVOLUTION})
    with pytest.raises(InputError, match=r"passes=3: unknown key .*known here: evaluations, name"):
        build_config(SearcherChoice, {"name": "random", "passes": 3})
    with pytest.raises(InputError, match="no searcher is called annealing: one of hybrid, "):
        build_config(SearcherChoice, {"name": "annealing"})


@pytest.mark.parametrize("name", ["gradient", "hybrid"])
def test_a_descent_finds_the_stubs_optimum(name: str) -> None:
    choice = SearcherChoice.model_validate({"name": "gradient", "passes": 150})
    searcher = choice.build(SPACE, SEEDS, 1, TASK)
    run(searcher)
    assert searcher.best is not None
    # λ and t at their optimum; n̂ = 4 would gain the last 0.008
    assert searcher.best[1].loss < 2.009


@pytest.mark.parametrize(("size", "num_documents"), [(1, 5), (2, 5), (3, 3), (None, 4), (7, 4)])
def test_a_descents_steps_go_through_the_documents_and_end_in_a_check(
    size: int | None, num_documents: int
) -> None:
    settings = DescentSettings(passes=6, documents_per_step=size, checks=3)
    plan = settings.plan(num_documents)
    is_whole = size is None or size >= num_documents
    assert plan.count("check") == (1 if is_whole else 3)
    assert plan[-1] == "check" and "check" not in plan[: len(plan) // 2 - 1]
    num_steps = settings.num_steps(num_documents)
    assert plan.count("step") == num_steps - 1, "the last step would be at rate 0"
    per_pass = num_steps // 6
    samples = [settings.sample(step, num_documents, seed=1) for step in range(num_steps)]
    if is_whole:
        assert per_pass == 1 and set(samples) == {None}
        return
    for start in range(0, len(samples), per_pass):
        seen = [
            document for sample in samples[start : start + per_pass] for document in sample or ()
        ]
        assert len(set(seen)) == len(seen) == per_pass * size
    other_orders = [settings.sample(step, num_documents, seed=2) for step in range(len(samples))]
    assert samples != other_orders and samples[:per_pass] != samples[per_pass : 2 * per_pass]


@pytest.mark.parametrize("passes", [1, 2, 7])
def test_no_point_of_a_descent_on_all_documents_is_evaluated_twice(passes: int) -> None:
    settings = {"passes": passes, "documents_per_step": None}
    choice = SearcherChoice.model_validate({"name": "gradient", **settings})
    searcher = choice.build(SPACE, SEEDS, 1, TASK)
    run(searcher)
    points = [told.candidate for told in searcher.history if told.origin != "seed"]
    assert len(set(points)) == len(points) == max(2, passes)


def test_a_descent_comes_back_from_a_point_without_a_loss() -> None:
    searcher = make("gradient")
    count = 0

    def sometimes(candidate: Candidate) -> Evaluation:
        nonlocal count
        count += 1
        broken = Evaluation((math.inf, 1.0), (100, 50))
        return broken if count % 5 == 0 else stub_objective([candidate], Terms(gradient=True))[0]

    run(searcher, evaluate=sometimes)
    assert searcher.best is not None and searcher.best[1].loss < 2.5
