"""The loop of a search: replay the journal, then evaluate round by round, recording each result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from megatron_longrope.artifacts.evaluations import Candidate, Evaluation, PartLoss
from megatron_longrope.artifacts.journal import JournalEntry, Record
from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.search.stopping import EarlyStopping, span_of_rule
from megatron_longrope.search.types import Judge, Searcher, Terms

Objective = Callable[[Sequence[Candidate], Terms], Iterable[Evaluation]]
"""Yields the evaluation of each candidate in the order asked, each as soon as it is complete."""


@dataclass(frozen=True)
class SearchProgress:
    """How far a search has got, reported after every evaluation."""

    done: int
    """Evaluations finished, recovered ones included."""
    total: int | None
    """Evaluations from first to last; None where the searcher does not know it."""
    recovered: int
    """Evaluations taken from the journal of an interrupted run."""
    rate: float | None
    """Evaluations per second of this run; until its first one ends, of those in the journal."""
    eta_seconds: float | None
    """Estimated seconds to the end of the search."""
    best_candidate: Candidate | None
    best_loss: float | None
    """Loss of the best candidate in nats per token."""
    best_perplexity: float | None
    """exp(best_loss); None where several parts are mixed."""
    best_evaluation: Evaluation | None = None
    best_parts: tuple[PartLoss, ...] = ()
    """The loss of each part where several are mixed; `search_factors` fills it in."""


@dataclass(frozen=True)
class SearchOutcome:
    """The result of a search: its best candidate and all its evaluations."""

    best: Candidate
    evaluation: Evaluation
    """The evaluation of the best candidate."""
    recovered: int
    """Number of evaluations taken from the journal of an interrupted run."""
    stopped_early: int
    """Number of candidates whose scoring was stopped before the last document."""
    entries: tuple[JournalEntry, ...]
    """All evaluations in order, recovered ones included."""


def run_search(
    searcher: Searcher,
    objective: Objective,
    journal: Record,
    *,
    stopping: EarlyStopping | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> SearchOutcome:
    """Runs a new `searcher` to its end and returns the best candidate.

    The evaluations in `journal` are told to the searcher, not made again: this is how an
    interrupted search goes on. Then `objective` evaluates what is left of each round, and each
    evaluation is written down and told as it comes. The result does not depend on interruptions: a
    resumed search proposes the same candidates. Raises InputError where the journal holds other
    candidates than the searcher proposes, LongRopeError where nothing usable was found.

    Args:
        searcher: A searcher that has not been asked yet.
        objective: The function that evaluates candidates, such as the losses of a model.
        journal: The record of the search, to which every evaluation is appended.
        stopping: The rule by which hopeless candidates are stopped; None scores all to the end.
        on_progress: Called once before the first evaluation and after each one.
    """
    recovered = _replay(searcher, journal.entries)
    start = time.monotonic()

    def report() -> None:
        if on_progress is not None:
            on_progress(_progress(searcher, journal.entries, recovered, time.monotonic() - start))

    report()
    while not searcher.finished:
        _evaluate_some(searcher, objective, journal, stopping, report)
    return _outcome(searcher, journal.entries, recovered)


def _replay(searcher: Searcher, entries: Sequence[JournalEntry]) -> int:
    """Tells `searcher` the evaluations made before and returns their number."""
    for entry in entries:
        proposed = searcher.ask(1)
        if proposed != [entry.candidate]:
            rule = (
                "this evaluation is of another candidate than the search proposes here; it is "
                "another search's journal"
            )
            raise InputError("journal entry", entry.index, rule)
        searcher.tell(entry.candidate, entry.evaluation)
    return len(entries)


def _evaluate_some(
    searcher: Searcher,
    objective: Objective,
    journal: Record,
    stopping: EarlyStopping | None,
    report: Callable[[], None],
) -> None:
    """Evaluates the rest of the present round, or of the part of it that one stopping rule covers.

    Rounds on a sample of the documents or with gradients have no stopping rule: they are scored as
    a whole.
    """
    judge, num_left = None, searcher.round_size
    if stopping is not None and searcher.sample is None and not searcher.asks_gradient:
        judge, num_left = _present_rule(searcher, journal.entries, stopping)
    terms = Terms(searcher.asks_gradient, judge, searcher.sample)
    candidates = searcher.ask(num_left)
    if not candidates:
        raise LongRopeError("the searcher is not finished, yet proposes nothing")
    before, num_evaluated = time.monotonic(), 0
    # The objective comes first in zip: after the last candidate it is asked once more, so that a
    # generator runs to its end and its clean-up happens here, not when it is garbage-collected.
    for evaluation, candidate in zip(objective(candidates, terms), candidates, strict=False):
        now = time.monotonic()
        index, provenance = len(journal.entries), searcher.provenance(candidate)
        # on disk before it is told: a searcher never knows more than the journal
        journal.append(
            JournalEntry(
                index, candidate, provenance, evaluation, now - before, evaluation.cost_tokens
            )
        )
        searcher.tell(candidate, evaluation)
        before, num_evaluated = now, num_evaluated + 1
        report()
    if num_evaluated != len(candidates):
        raise LongRopeError(
            f"the objective gave {num_evaluated} evaluations of {len(candidates)} candidates"
        )


def _present_rule(
    searcher: Searcher, entries: Sequence[JournalEntry], stopping: EarlyStopping
) -> tuple[Judge | None, int]:
    """Returns the present stopping rule and the number of further candidates it holds for.

    The rule is learned from the evaluations up to a fixed point (`span_of_rule`), never from later
    ones: a run that resumes in the middle of a round must stop the same candidates.
    """
    round_start = len(entries) - searcher.num_told_of_round
    made_at, end = span_of_rule(round_start, round_start + searcher.round_size, len(entries))
    return stopping.judge([entry.evaluation for entry in entries[:made_at]]), end - len(entries)


def _progress(
    searcher: Searcher, entries: Sequence[JournalEntry], recovered: int, seconds: float
) -> SearchProgress:
    done, total, best = len(entries), searcher.num_evaluations, searcher.best
    num_timed = done - recovered or recovered
    timed = seconds if done > recovered else sum(entry.seconds for entry in entries)
    rate = num_timed / timed if num_timed and timed > 0 else None
    eta = (total - done) / rate if total is not None and rate else None
    if best is None:
        return SearchProgress(done, total, recovered, rate, eta, None, None, None)
    return SearchProgress(
        done, total, recovered, rate, eta, best[0], best[1].loss, best[1].perplexity, best[1]
    )


def _outcome(searcher: Searcher, entries: Sequence[JournalEntry], recovered: int) -> SearchOutcome:
    if searcher.best is None:
        raise LongRopeError(
            f"none of {len(entries)} candidates was scored to the end with a finite loss"
        )
    candidate, evaluation = searcher.best
    stopped = sum(entry.stopped_early for entry in entries)
    return SearchOutcome(candidate, evaluation, recovered, stopped, tuple(entries))
