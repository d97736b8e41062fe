"""The evolutionary search: sizes, uniqueness, determinism, exact state, what may become a parent,
convergence."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope.errors import InputError
from megatron_longrope.search import (
    Candidate,
    Evaluation,
    EvolutionSearch,
    EvolutionSettings,
    SearchSpace,
    TellError,
)
from megatron_longrope.search.variation import draw_genome
from tests.support.search_stubs import (
    NUM_PAIRS,
    SEEDS,
    SMALL,
    SPACE,
    TASK,
    small_search,
    stub_evaluation,
)


def run(search: EvolutionSearch, batch: int = 3, evaluate=stub_evaluation) -> list[Candidate]:
    """Runs `search` to its end; returns all it proposed, in order."""
    proposed = []
    while not search.finished:
        candidates = search.ask(batch)
        proposed += candidates
        for candidate in candidates:
            search.tell(candidate, evaluate(candidate))
    return proposed


@pytest.mark.parametrize(
    ("target", "population", "offspring", "parents", "total"),
    [("256k", 64, 16, 32, 1344), ("512k", 64, 16, 32, 1344), ("2M", 32, 8, 16, 672)],
)
def test_paper_settings(target, population, offspring, parents, total):
    sizes = EvolutionSettings.paper(target)
    assert (sizes.population, sizes.mutants, sizes.crossovers, sizes.parents) == (
        population,
        offspring,
        offspring,
        parents,
    )
    assert (sizes.iterations, sizes.mutation_probability, sizes.num_evaluations) == (40, 0.3, total)


@given(st.integers(0, 2**63), st.integers(1, 12))
@settings(max_examples=10, deadline=None)
def test_proposes_its_budget_once_each_and_inside_the_space(seed, batch):
    search = small_search(seed)
    assert search.num_evaluations == SMALL.num_evaluations == 34
    proposed = run(search, batch)
    assert len(proposed) == len(set(proposed)) == search.num_evaluations == 34
    assert all(SPACE.contains(candidate) for candidate in proposed)
    assert search.ask(1) == []


def test_seeds_come_first_and_origins_are_told():
    search = small_search()
    first = search.ask(100)
    assert len(first) == SMALL.population
    assert first[:2] == [SPACE.project(candidate) for candidate in SEEDS]
    origins = [search.provenance(candidate).origin for candidate in first]
    assert origins == ["seed"] * 2 + ["mutant"] * 8
    for candidate in first:
        search.tell(candidate, stub_evaluation(candidate))
    second = [search.provenance(candidate) for candidate in search.ask(100)]
    assert [p.origin for p in second] == ["mutant"] * 4 + ["crossover"] * 4
    assert {p.generation for p in second} == {1}


def test_doubled_seeds_are_proposed_once():
    search = EvolutionSearch(SPACE, SMALL, [*SEEDS, *SEEDS], 1, TASK)
    assert len(set(run(search))) == 34


def test_same_seed_same_history_same_candidates_whatever_the_batch():
    assert (
        run(small_search(7), batch=1)
        == run(small_search(7), batch=5)
        == run(small_search(7), batch=64)
    )
    assert run(small_search(7)) != run(small_search(8))


def test_history_matters():
    assert run(small_search(7)) != run(
        small_search(7), evaluate=lambda c: Evaluation((c.rescale[0],), (1,))
    )


@given(st.integers(0, 33), st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_state_round_trip_anywhere_continues_exactly(told, asked_ahead):
    undisturbed = run(small_search(3), batch=1)
    search = small_search(3)
    for _ in range(told):
        (candidate,) = search.ask(1)
        search.tell(candidate, stub_evaluation(candidate))
    waiting = search.ask(asked_ahead) if asked_ahead else []
    copy = small_search(3)
    copy.load_state_dict(json.loads(json.dumps(search.state_dict(), allow_nan=False)))
    for candidate in waiting:
        copy.tell(candidate, stub_evaluation(candidate))
    assert undisturbed[:told] + waiting + run(copy) == undisturbed
    reference = small_search(3)
    run(reference)
    assert copy.best == reference.best


def test_state_of_another_search_is_refused():
    state = json.loads(json.dumps(small_search(3).state_dict()))
    with pytest.raises(InputError, match="seed=4"):
        small_search(4).load_state_dict(state)
    with pytest.raises(InputError, match=r"settings\.iterations"):
        small_search(3, SMALL.model_copy(update={"iterations": 9})).load_state_dict(state)


def test_results_out_of_order_or_unknown_are_refused():
    search = small_search()
    with pytest.raises(TellError, match="none is waiting"):
        search.tell(SEEDS[0], stub_evaluation(SEEDS[0]))
    first, second = search.ask(2)
    with pytest.raises(TellError, match="out of order"):
        search.tell(second, stub_evaluation(second))
    search.tell(first, stub_evaluation(first))
    with pytest.raises(TellError):
        search.tell(first, stub_evaluation(first))
    with pytest.raises(TellError):
        search.provenance(first)


def test_ask_waits_for_the_generation():
    search = small_search()
    asked = search.ask(7)
    assert (
        len(asked) == 7 and len(search.ask(7)) == 3 and search.ask(7) == [] and not search.finished
    )


@pytest.mark.parametrize(
    "spoiled",
    [
        Evaluation((0.01,), (1,), completed=False),
        Evaluation((math.nan,), (1,)),
        Evaluation((-math.inf,), (1,)),
    ],
)
def test_stopped_and_non_finite_evaluations_are_never_best_nor_parents(spoiled):
    search = small_search()
    bad = set()
    while not search.finished:
        for index, candidate in enumerate(search.ask(100)):
            if index % 2:
                bad.add(candidate)
            search.tell(candidate, spoiled if index % 2 else stub_evaluation(candidate))
        parents = set(search.parents)
        assert parents and not parents & bad
    assert search.best is not None and search.best[0] not in bad


def test_goes_on_from_the_seeds_while_nothing_is_usable():
    search = small_search()
    assert len(run(search, evaluate=lambda _: Evaluation((math.inf,), (1,)))) == 34
    assert search.best is None


def test_of_equals_the_first_is_best():
    search = small_search()
    proposed = run(search, evaluate=lambda _: Evaluation((1.0,), (1,)))
    assert search.best is not None and search.best[0] == proposed[0]


def test_a_space_smaller_than_the_budget_ends_early():
    space = SearchSpace((1.0,), (1.04,), attention_factors=(1.0,))
    search = EvolutionSearch(space, SMALL, [Candidate((1.0,))], 0, TASK)
    proposed = run(search)
    assert len(proposed) == len(set(proposed)) == search.num_evaluations == 5


def test_more_seeds_than_the_population_and_none_are_refused():
    with pytest.raises(InputError, match="2 different seeds"):
        EvolutionSearch(SPACE, SMALL.model_copy(update={"population": 1}), SEEDS, 0, TASK)
    with pytest.raises(InputError, match="seeds"):
        EvolutionSearch(SPACE, SMALL, [], 0, TASK)


def test_all_genes_are_searched():
    proposed = run(small_search(settings=SMALL.model_copy(update={"iterations": 12})))
    assert len({c.start_tokens for c in proposed}) >= 4
    assert len({c.attention_factor for c in proposed}) > 8
    assert all(len({c.rescale[pair] for c in proposed}) > 4 for pair in range(NUM_PAIRS))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_beats_random_search_and_its_seeds_at_equal_budget(seed):
    sizes = EvolutionSettings(population=32, mutants=8, crossovers=8, parents=16, iterations=20)
    search = small_search(seed, sizes)
    run(search)
    assert search.best is not None
    found = search.best[1].loss - 2
    rng = np.random.default_rng(seed)
    drawn = [SPACE.decode(draw_genome(SPACE, rng)) for _ in range(sizes.num_evaluations)]
    by_chance = min(stub_evaluation(candidate).loss for candidate in drawn) - 2
    seeds = min(stub_evaluation(candidate).loss for candidate in SEEDS) - 2
    assert found < 0.5 * by_chance and found < 0.1 * seeds
