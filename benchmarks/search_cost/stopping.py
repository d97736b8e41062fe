"""A replay of early stopping over searches that scored every candidate to the end.

It shows how many tokens early stopping would have saved, and which good candidates it would have
lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from megatron_longrope.search import EarlyStopping, Evaluation, JournalEntry
from megatron_longrope.search.stopping import best_usable, span_of_rule
from megatron_longrope.search.types import Judge


@dataclass(frozen=True)
class Replay:
    """The effect of early stopping on one journal."""

    evaluations: int
    stopped: int
    """Number of candidates that would have been stopped."""
    token_share: float
    """Tokens that would have been scored over those that were."""
    lost_best: bool
    """Whether the best candidate of the whole search would have been stopped."""
    lost_improvements: int
    """Number of stopped candidates that were better than the incumbent of their rule."""


def replay(
    entries: Sequence[JournalEntry], stopping: EarlyStopping, rung_tokens: Sequence[int] = ()
) -> Replay:
    """Returns the effect of `stopping` on `entries`, all completed, in their order and rounds.

    As in a search, a candidate that is stopped is never the incumbent, and no rule is learned from
    it. `rung_tokens` are the tokens that each rung of a ladder costs.
    """
    assert all(entry.evaluation.completed for entry in entries), (
        "early stopping is replayed over whole evaluations"
    )
    final = min((e for e in entries if e.evaluation.usable), key=lambda e: e.evaluation.loss)
    kept: list[Evaluation] = []
    scored = lost = stopped = 0
    lost_best = False
    for part_of_round in _under_one_rule(entries):
        incumbent, judge = best_usable(kept), stopping.judge(kept)
        for entry in part_of_round:
            part = _scored(entry.evaluation, judge)
            scored += part.tokens + sum(rung_tokens[: len(part.rungs)])
            if part.completed:
                kept.append(entry.evaluation)
                continue
            stopped += 1
            lost_best |= entry is final
            lost += incumbent is not None and entry.evaluation.loss < incumbent.loss
    tokens = sum(entry.evaluation.tokens for entry in entries)
    return Replay(len(entries), stopped, scored / tokens, lost_best, lost)


def _under_one_rule(entries: Sequence[JournalEntry]) -> Iterator[Sequence[JournalEntry]]:
    """Yields the parts of the search that one stopping rule holds for, in order."""
    done = 0
    for _, generation in groupby(entries, key=lambda entry: entry.provenance.generation):
        start, round_end = done, done + len(list(generation))
        while done < round_end:
            _, end = span_of_rule(start, round_end, done)
            yield entries[done:end]
            done = end


def _scored(whole: Evaluation, judge: Judge | None) -> Evaluation:
    """Returns the part of an evaluation up to where `judge` stops it, or all of it."""
    return next((part for part in _parts(whole) if judge is not None and judge(part)), whole)


def _parts(whole: Evaluation) -> Iterator[Evaluation]:
    """Yields what is known at each point where scoring may stop: after each rung and document."""
    for rungs in range(1, len(whole.rungs) + 1):
        yield Evaluation((), (), completed=False, rungs=whole.rungs[:rungs])
    for scored in range(1, len(whole.nll_sums)):
        sums, counts = whole.nll_sums[:scored], whole.token_counts[:scored]
        yield replace(
            whole,
            nll_sums=sums,
            token_counts=counts,
            completed=False,
            gradient=None,
            cost_tokens=-1,
        )
