"""Early stopping: what is hopeless, the stated error level, and searches that stop give the same best."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_longrope.search import Candidate, EarlyStopping, Evaluation, MemoryJournal, Terms, run_search
from megatron_longrope.search.stopping import difference_spread
from tests.unit.search_stubs import small_search, stub_evaluation

COUNTS = (1000,) * 5


def evaluation(losses: np.ndarray, num_documents: int = 5) -> Evaluation:
    sums = tuple(float(loss * 1000) for loss in losses[:num_documents])
    return Evaluation(sums, COUNTS[:num_documents], completed=num_documents == 5)


def noisy(random: np.random.Generator, margin: float, spread: float = 0.01) -> np.ndarray:
    return np.full(5, 3.0) + margin + spread * random.standard_normal(5)


def test_the_stated_error_level_is_kept_and_the_hopeless_are_stopped() -> None:
    random = np.random.default_rng(0)
    incumbent = evaluation(np.full(5, 3.0))
    wrong = stopped = 0
    for _ in range(400):
        completed = [evaluation(noisy(random, 0.002)) for _ in range(40)]
        judge = EarlyStopping(error_level=0.05).judge(incumbent, completed)
        assert judge is not None
        even, worse = noisy(random, 0.0), noisy(random, 0.05)
        is_better = even.mean() < 3.0
        wrong += is_better and judge(evaluation(even, 2))
        stopped += judge(evaluation(worse, 1))
    assert wrong <= 0.05 * 400
    assert stopped >= 0.95 * 400


def test_nothing_is_stopped_without_an_incumbent_or_enough_completed_evaluations() -> None:
    random = np.random.default_rng(0)
    some = [evaluation(noisy(random, 0.002)) for _ in range(7)]
    assert EarlyStopping().judge(None, some) is None
    assert EarlyStopping().judge(evaluation(np.full(5, 3.0)), some) is None


def test_a_loss_that_is_not_finite_is_hopeless() -> None:
    random = np.random.default_rng(0)
    judge = EarlyStopping().judge(evaluation(np.full(5, 3.0)), [evaluation(noisy(random, 0.0)) for _ in range(8)])
    assert judge is not None and judge(Evaluation((math.inf,), (1000,), completed=False))
    assert judge(Evaluation((math.nan,), (1000,), completed=False))


def test_the_spread_is_that_of_the_closest() -> None:
    random = np.random.default_rng(1)
    incumbent = evaluation(np.full(5, 3.0))
    close = [evaluation(noisy(random, 0.001, 0.01)) for _ in range(200)]
    far = [evaluation(noisy(random, 1.0, 0.5)) for _ in range(600)]
    assert difference_spread(incumbent, close + far) == pytest.approx(0.01, rel=0.1)


def by_document(candidate: Candidate) -> np.ndarray:
    """Losses on five documents that agree about candidates but for a little noise of their own."""
    noise = np.random.default_rng(int(1e6 * sum(candidate.rescale)) % 2**32).standard_normal(5)
    return stub_evaluation(candidate).loss + 0.1 * np.arange(5) + 0.002 * noise


def scoring(candidates: list[Candidate], terms: Terms):  # type: ignore[no-untyped-def]
    for candidate in candidates:
        losses = by_document(candidate)
        for scored in range(1, 6):
            result = evaluation(losses, scored)
            if scored < 5 and terms.judge is not None and terms.judge(result):
                break
        yield result


def test_a_search_that_stops_early_is_cheaper_and_replays_exactly() -> None:
    plain, stopping = MemoryJournal(), MemoryJournal()
    whole = run_search(small_search(), scoring, plain)
    outcome = run_search(small_search(), scoring, stopping, stopping=EarlyStopping())
    assert outcome.cost.tokens < whole.cost.tokens and outcome.stopped_early > 0
    assert outcome.evaluation.completed
    kept = [entry for entry in stopping.entries if not entry.evaluation.completed]
    assert all(0 < len(entry.evaluation.nll_sums) < 5 for entry in kept)
    for cut in range(0, len(stopping.entries), 5):
        again = MemoryJournal(stopping.entries[:cut])
        assert run_search(small_search(), scoring, again, stopping=EarlyStopping()).best == outcome.best
        assert [e.evaluation for e in again.entries] == [e.evaluation for e in stopping.entries]
