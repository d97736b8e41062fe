"""Early stopping: what is hopeless, the stated error level, and searches that stop give the same
best."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from megatron_longrope.search import (
    Candidate,
    EarlyStopping,
    Evaluation,
    MemoryJournal,
    SearcherChoice,
    SearchOutcome,
    Terms,
    run_search,
)
from megatron_longrope.search.stopping import (
    _over_documents,
    _student_quantile,
    closest_differences,
    span_of_rule,
)
from tests.support.search_stubs import (
    SEEDS,
    SPACE,
    TASK,
    small_search,
    stub_evaluation,
    stub_gradient,
)

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
        completed = [evaluation(noisy(random, 0.012)) for _ in range(40)]
        judge = EarlyStopping(error_level=0.05).judge([incumbent, *completed])
        assert judge is not None
        even, worse = noisy(random, 0.0), noisy(random, 0.1)
        is_better = even.mean() < 3.0
        wrong += is_better and any(judge(evaluation(even, scored)) for scored in range(1, 5))
        stopped += judge(evaluation(worse, 2))
    assert wrong <= 0.05 * 400
    assert stopped >= 0.95 * 400


def test_nothing_is_stopped_without_enough_completed_evaluations() -> None:
    random = np.random.default_rng(0)
    some = [evaluation(noisy(random, 0.002)) for _ in range(9)]
    assert EarlyStopping().judge([]) is None
    assert EarlyStopping().judge(some[:8]) is None
    assert EarlyStopping().judge([evaluation(noisy(random, 0.002), 3) for _ in range(20)]) is None
    assert EarlyStopping().judge(some) is not None


def test_the_first_round_has_a_rule_after_twelve_candidates_and_later_rounds_have_one() -> None:
    assert [span_of_rule(0, 40, done) for done in (0, 11, 12, 39)] == [
        (0, 12),
        (0, 12),
        (12, 40),
        (12, 40),
    ]
    assert [span_of_rule(start, start + 6, start + 3) for start in (0, 6, 12)] == [
        (0, 6),
        (6, 12),
        (12, 18),
    ]


def test_a_loss_that_is_not_finite_is_hopeless() -> None:
    random = np.random.default_rng(0)
    judge = EarlyStopping().judge([evaluation(noisy(random, 0.0)) for _ in range(9)])
    assert judge is not None and judge(Evaluation((math.inf,), (1000,), completed=False))
    assert judge(Evaluation((math.nan,), (1000,), completed=False))


def test_what_the_rest_brings_is_learned_from_the_closest() -> None:
    random = np.random.default_rng(1)
    incumbent = evaluation(np.full(5, 3.0))
    close = [evaluation(noisy(random, 0.001, 0.01)) for _ in range(200)]
    far = [evaluation(noisy(random, 1.0, 0.5)) for _ in range(800)]
    differences = closest_differences(incumbent, close + far, _over_documents)
    assert differences is not None and differences.shape == (150, 5)
    expected = [0.01 * math.sqrt(1 / m - 1 / 5) for m in range(1, 6)]
    np.testing.assert_allclose((differences[:, -1:] - differences).std(axis=0), expected, rtol=0.2)


def test_documents_that_mind_more_than_others_are_no_surprise() -> None:
    """The first document loses half of what all lose on average: half as much behind there is as
    far behind."""
    random = np.random.default_rng(2)
    shape = np.array([0.5, 1.0, 1.0, 1.0, 1.5])

    def losses(margin: float) -> np.ndarray:
        return 3.0 + margin * shape + 1e-4 * random.standard_normal(5)

    told = [
        evaluation(np.full(5, 3.0)),
        *(evaluation(losses(random.uniform(0.01, 0.02))) for _ in range(60)),
    ]
    judge = EarlyStopping().judge(told)
    assert judge is not None
    assert judge(evaluation(losses(0.003), 1))
    assert not judge(evaluation(losses(-0.01), 1))


def test_one_that_is_better_on_every_document_is_never_stopped() -> None:
    """The incumbent stands clear of all others, and later documents mind more: those ahead of it
    gain there."""
    sensitivity = np.array([0.8, 0.9, 1.0, 1.1, 1.2])
    others = [evaluation(3.0 + margin * sensitivity) for margin in np.linspace(0.3, 0.4, 11)]
    judge = EarlyStopping().judge([evaluation(np.full(5, 3.0)), *others])
    assert judge is not None
    for ahead in (0.0, 1e-6, 0.02, 0.05, 1.0):
        assert not any(
            judge(evaluation(3.0 - ahead * sensitivity, scored)) for scored in range(1, 5)
        ), ahead
    assert all(judge(evaluation(3.0 + 0.05 * sensitivity, scored)) for scored in range(1, 5))


def test_a_ladder_stops_what_is_hopeless_at_shorter_lengths_and_learns_how_far_that_tells() -> None:
    random = np.random.default_rng(3)

    def on_rungs(margin: float, rungs: int = 2, documents: int = 0) -> Evaluation:
        """The first rung tells nothing, the second twice the difference at length."""
        nats = (
            2.5 + 0.1 * random.standard_normal(),
            2.8 + 2 * margin + 1e-3 * random.standard_normal(),
        )
        return replace(evaluation(np.full(5, 3.0 + margin), documents), rungs=nats[:rungs])

    told = [
        on_rungs(0.0, documents=5),
        *(on_rungs(random.uniform(0.005, 0.02), documents=5) for _ in range(60)),
    ]
    judge = EarlyStopping(ladder=(64, 128)).judge(told)
    assert judge is not None
    assert not any(judge(on_rungs(0.05, rungs=1)) for _ in range(20))
    assert judge(on_rungs(0.05)) and not judge(on_rungs(0.0))
    assert judge(Evaluation((), (), completed=False, rungs=(2.5, math.nan)))
    assert judge(on_rungs(0.05, documents=2)) and not judge(on_rungs(-0.01, documents=2))


def test_a_ladder_ascends() -> None:
    for wrong in ([128, 64], [64, 64], [1]):
        with pytest.raises(ValueError, match="ladder"):
            EarlyStopping.model_validate({"ladder": wrong})


@pytest.mark.parametrize(
    ("probability", "freedom", "table"), [(0.99, 7, 2.998), (0.99, 20, 2.528), (0.95, 9, 1.833)]
)
def test_students_quantile_is_the_tables(probability: float, freedom: int, table: float) -> None:
    assert _student_quantile(probability, freedom) == pytest.approx(table, rel=2e-3)


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


def _tokens(outcome: SearchOutcome) -> int:
    return sum(entry.cost_tokens for entry in outcome.entries)


def test_a_search_that_stops_early_is_cheaper_and_replays_exactly() -> None:
    plain, stopping = MemoryJournal(), MemoryJournal()
    whole = run_search(small_search(), scoring, plain)
    outcome = run_search(small_search(), scoring, stopping, stopping=EarlyStopping())
    assert _tokens(outcome) < _tokens(whole) and outcome.stopped_early > 0
    assert outcome.evaluation.completed
    kept = [entry for entry in stopping.entries if not entry.evaluation.completed]
    assert all(0 < len(entry.evaluation.nll_sums) < 5 for entry in kept)
    for cut in range(0, len(stopping.entries), 5):
        again = MemoryJournal(stopping.entries[:cut])
        assert (
            run_search(small_search(), scoring, again, stopping=EarlyStopping()).best
            == outcome.best
        )
        assert [e.evaluation for e in again.entries] == [e.evaluation for e in stopping.entries]


def laddered(random: np.random.Generator, margin: float, documents: int = 5) -> Evaluation:
    """An evaluation of a candidate this much worse at length, and as much on its one rung."""
    rung = 2.5 + margin + 1e-3 * random.standard_normal()
    return replace(evaluation(np.full(5, 3.0 + margin), documents), rungs=(rung,))


def test_an_incumbent_without_rungs_is_compared_on_documents() -> None:
    """The step of a descent is such a one: with gradients there is no ladder. On the rung the best
    candidate that was scored there stands for it."""
    random = np.random.default_rng(5)
    descended = evaluation(np.full(5, 2.9))
    told = [laddered(random, margin) for margin in (0.0, *random.uniform(0.005, 0.02, 60))]
    judge = EarlyStopping(ladder=(64,)).judge([*told, descended])
    assert judge is not None
    assert judge(laddered(random, 0.1, documents=0))
    assert not judge(laddered(random, 0.0, documents=0))
    assert not judge(laddered(random, -0.2, documents=1))
    assert judge(laddered(random, 0.05, documents=1)), "behind the incumbent, which has no rung"
    assert judge(replace(laddered(random, 0.0, 0), rungs=(math.nan,)))


def test_without_any_rung_to_compare_with_the_documents_decide() -> None:
    random = np.random.default_rng(6)
    told = [evaluation(noisy(random, margin, 1e-3)) for margin in (0.0, *[0.01] * 12)]
    judge = EarlyStopping(ladder=(64,)).judge(told)
    assert judge is not None
    assert not judge(laddered(random, 9.0, documents=0))
    assert judge(replace(laddered(random, 0.0, 0), rungs=(math.inf,)))
    assert judge(laddered(random, 0.5, documents=1))
    assert EarlyStopping(ladder=(64,)).judge(told[:5]) is None


def test_a_search_with_a_ladder_goes_on_after_a_descent_over_all_documents() -> None:
    """One long document, for which a ladder is meant: each step of the descent is on all of it."""
    settings = {
        "name": "hybrid",
        "ramp": {"max_rounds": 1},
        "descent": {"passes": 12, "checks": 2},
        "rounds": 2,
        "mutants": 12,
    }
    task = replace(TASK, num_documents=1)

    def with_ladder(candidates: list[Candidate], terms: Terms):  # type: ignore[no-untyped-def]
        for candidate in candidates:
            whole = stub_evaluation(candidate)
            rung = Evaluation((), (), completed=False, rungs=(whole.loss - 0.4,))
            if terms.gradient:
                yield replace(whole, gradient=stub_gradient(candidate))
            elif terms.judge is not None and terms.judge(rung):
                yield rung
            else:
                yield replace(whole, rungs=rung.rungs)

    journal = MemoryJournal()
    searcher = SearcherChoice.model_validate(settings).build(SPACE, SEEDS, 1, task)
    outcome = run_search(searcher, with_ladder, journal, stopping=EarlyStopping(ladder=(64,)))
    steps = [entry for entry in journal.entries if entry.has_gradient]
    assert steps and all(entry.evaluation.completed for entry in steps)
    assert outcome.evaluation.completed and outcome.stopped_early > 0
