"""Running a search: replay what the journal holds, evaluate the rest round by round, write each
result down."""

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
"""Gives the evaluation of each candidate, in the order asked, each as soon as it is there."""


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is. `rate` is in evaluations per second since this run began, before its
    first one ends those of the journal's; `best_loss` is nats per token.
    """

    done: int
    total: int | None
    recovered: int
    rate: float | None
    eta_seconds: float | None
    best_candidate: Candidate | None
    best_loss: float | None
    best_perplexity: float | None
    """exp(best_loss); None where the loss is known to be a mixture."""
    best_evaluation: Evaluation | None = None
    best_parts: tuple[PartLoss, ...] = ()
    """Of a mixture, each part alone: whoever knows the objective's parts puts them in."""


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found and all evaluations it took, recovered ones included."""

    best: Candidate
    evaluation: Evaluation
    recovered: int
    stopped_early: int
    entries: tuple[JournalEntry, ...]


def run_search(
    searcher: Searcher,
    objective: Objective,
    journal: Record,
    *,
    stopping: EarlyStopping | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> SearchOutcome:
    """Runs a new `searcher` to its end and returns the best candidate.

    What `journal` holds is told, not evaluated again. Then `objective` is given what is left of
    each round, and each evaluation is written down and told as it comes. Raises InputError where
    the journal holds other candidates than the searcher proposes, LongRopeError where nothing
    usable was found.
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
    """Tells `searcher` what was evaluated before; returns how many."""
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
    """Evaluates what is left of the present round, or of the part of it that one rule to stop early
    holds for."""
    judge, num_left = None, searcher.round_size
    if stopping is not None and searcher.sample is None and not searcher.asks_gradient:
        judge, num_left = _present_rule(searcher, journal.entries, stopping)
    terms = Terms(searcher.asks_gradient, judge, searcher.sample)
    candidates = searcher.ask(num_left)
    if not candidates:
        raise LongRopeError("the searcher is not finished, yet proposes nothing")
    before, num_evaluated = time.monotonic(), 0
    # the objective first: it gets to its end, and may leave things as it promises
    for evaluation, candidate in zip(objective(candidates, terms), candidates, strict=False):
        now = time.monotonic()
        index, provenance = len(journal.entries), searcher.provenance(candidate)
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
    """Returns the rule to stop early, the same wherever a run resumed, and for how many more
    candidates it holds."""
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
