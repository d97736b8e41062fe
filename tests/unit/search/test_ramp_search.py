"""The searcher of YaRN's three numbers: close to the best ramp and t in few evaluations."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_longrope.search import (
    Candidate,
    Evaluation,
    SearcherChoice,
    SearchSpace,
    SearchTask,
)
from tests.unit.search.test_ramp import GEOMETRY, SCALE, SPACE, yarn

TASK = SearchTask(2048, SCALE, num_documents=1)
SEEDS = [Candidate((SCALE,) * 32, 0, 1.0), yarn()]


def least_loss(
    target: Candidate, num_evaluations: int | None, seed: int = 1, **choice: object
) -> tuple[float, int]:
    """Returns the least distance to `target` in log λ and t, and after how many evaluations."""
    searcher = SearcherChoice.model_validate(choice).build(SPACE, SEEDS, seed, TASK)
    losses: list[float] = []
    while not searcher.finished and (num_evaluations is None or len(losses) < num_evaluations):
        (candidate,) = searcher.ask(1)
        losses.append(_loss(candidate, target))
        searcher.tell(candidate, Evaluation((losses[-1],), (1,)))
    return min(losses), len(losses)


def _loss(candidate: Candidate, target: Candidate) -> float:
    distance = np.log(candidate.rescale) - np.log(target.rescale)
    warmth = candidate.attention_factor - target.attention_factor
    return float(np.mean(distance**2)) + 3 * warmth**2


@pytest.mark.parametrize(("fast", "slow"), [(4.0, 0.7), (64.0, 2.0), (10.0, 1.5)])
@pytest.mark.parametrize("attention_factor", [1.1, 1.27])
def test_it_is_closer_than_an_evolution_of_as_many_evaluations(
    fast: float, slow: float, attention_factor: float
) -> None:
    target = Candidate(yarn(beta_fast=fast, beta_slow=slow).rescale, 0, attention_factor)
    ours, evaluations = least_loss(target, None, name="ramp")
    assert evaluations <= len(SEEDS) + 8 * 8 and ours < 0.2 * min(_loss(s, target) for s in SEEDS)
    sizes = {"population": 16, "mutants": 8, "crossovers": 8, "parents": 8}
    others = [least_loss(target, evaluations, seed, name="evolution", **sizes) for seed in (1, 2)]
    assert all(ours < 0.5 * loss for loss, _ in others)


def test_t_alone_is_moved_where_the_start_has_no_ramp() -> None:
    searcher = SearcherChoice(name="ramp").build(SPACE, SEEDS[:1], 1, TASK)
    while not searcher.finished:
        (candidate,) = searcher.ask(1)
        loss = abs(candidate.attention_factor - 1.13)
        searcher.tell(candidate, Evaluation((loss,), (1,)))
    assert searcher.best is not None
    assert searcher.best[0] == Candidate(SEEDS[0].rescale, 0, 1.13)


def test_a_fixed_t_stays() -> None:
    space = SearchSpace.first_stage(GEOMETRY.num_pairs, SCALE, attention_factors=(1.1,))
    searcher = SearcherChoice(name="ramp").build(space, SEEDS, 1, TASK)
    for _ in range(20):
        (candidate,) = searcher.ask(1)
        searcher.tell(candidate, Evaluation((_loss(candidate, yarn(beta_fast=8)),), (1,)))
    assert {told.candidate.attention_factor for told in searcher.history} == {1.1}
