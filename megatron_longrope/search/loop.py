"""Running a search: replay what the journal holds, evaluate the rest in batches, write each result down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.search.journal import JournalEntry, Record
from megatron_longrope.search.types import Candidate, Evaluation, Searcher

Objective = Callable[[Sequence[Candidate]], list[Evaluation]]


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is. `rate` counts evaluations per second since this run began; `best_loss` is nats per token."""

    done: int
    total: int | None
    recovered: int
    rate: float | None
    eta_seconds: float | None
    best_candidate: Candidate | None
    best_loss: float | None
    best_perplexity: float | None


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found and what it took; evaluations, tokens and seconds include the recovered ones."""

    best: Candidate
    evaluation: Evaluation
    num_evaluations: int
    recovered: int
    tokens: int
    seconds: float


def run_search(
    searcher: Searcher,
    objective: Objective,
    journal: Record,
    *,
    batch: int,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> SearchOutcome:
    """Runs a new `searcher` to its end and returns the best candidate.

    What `journal` holds is told, not evaluated again. Then `objective` is called with at most `batch` candidates at a
    time, and its evaluations are written down and told in the order asked. Raises InputError where the journal holds
    other candidates than the searcher proposes, LongRopeError where nothing usable was found.
    """
    if batch < 1:
        raise InputError("batch", batch, "evaluate 1 candidate or more at a time")
    recovered = _replay(searcher, journal.entries)
    start = time.monotonic()
    while True:
        if on_progress is not None:
            on_progress(_progress(searcher, len(journal.entries), recovered, time.monotonic() - start))
        if searcher.finished:
            return _outcome(searcher, journal.entries, recovered)
        _evaluate_batch(searcher, objective, journal, batch)


def _replay(searcher: Searcher, entries: Sequence[JournalEntry]) -> int:
    """Tells `searcher` what was evaluated before; returns how many."""
    for entry in entries:
        proposed = searcher.ask(1)
        if proposed != [entry.candidate]:
            rule = (
                "this evaluation is of another candidate than the search proposes here; it is another search's journal"
            )
            raise InputError("journal entry", entry.index, rule)
        searcher.tell(entry.candidate, entry.evaluation)
    return len(entries)


def _evaluate_batch(searcher: Searcher, objective: Objective, journal: Record, batch: int) -> None:
    candidates = searcher.ask(batch)
    if not candidates:
        raise LongRopeError("the searcher is not finished, yet proposes nothing")
    start = time.monotonic()
    evaluations = objective(candidates)
    seconds = (time.monotonic() - start) / len(candidates)
    if len(evaluations) != len(candidates):
        raise LongRopeError(f"the objective gave {len(evaluations)} evaluations of {len(candidates)} candidates")
    for candidate, evaluation in zip(candidates, evaluations, strict=True):
        index, provenance = len(journal.entries), searcher.provenance(candidate)
        journal.append(JournalEntry(index, candidate, provenance, evaluation, seconds, evaluation.tokens))
        searcher.tell(candidate, evaluation)


def _progress(searcher: Searcher, done: int, recovered: int, seconds: float) -> SearchProgress:
    total, best = searcher.num_evaluations, searcher.best
    rate = (done - recovered) / seconds if done > recovered and seconds > 0 else None
    eta = (total - done) / rate if total is not None and rate else None
    if best is None:
        return SearchProgress(done, total, recovered, rate, eta, None, None, None)
    return SearchProgress(done, total, recovered, rate, eta, best[0], best[1].loss, best[1].perplexity)


def _outcome(searcher: Searcher, entries: Sequence[JournalEntry], recovered: int) -> SearchOutcome:
    if searcher.best is None:
        raise LongRopeError(f"none of {len(entries)} candidates was scored to the end with a finite loss")
    candidate, evaluation = searcher.best
    tokens, seconds = sum(entry.cost_tokens for entry in entries), sum(entry.seconds for entry in entries)
    return SearchOutcome(candidate, evaluation, len(entries), recovered, tokens, seconds)
