"""How fast searches of the same documents converged, read from their journals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_longrope.artifacts.cost import forward_equivalents
from megatron_longrope.artifacts.journal import SearchJournal
from megatron_longrope.report.aggregate import best_so_far


@dataclass(frozen=True)
class SearchCurve:
    """The course of one search, with an entry after each evaluation."""

    searcher: str
    costs: list[float]
    """Cost so far, in forward passes over all documents."""
    perplexities: list[float]
    """Best perplexity so far; infinite before there is one."""
    stopped_early: int
    """Number of candidates that were stopped early."""
    tokens: int
    """Tokens that went through the model forward."""
    backward_tokens: int
    """Tokens, out of these, that went through it backward as well."""
    seconds: float

    @property
    def evaluations(self) -> int:
        """Number of evaluations."""
        return len(self.costs)


@dataclass(frozen=True)
class Convergence:
    """The searches of one directory that can be compared."""

    curves: list[SearchCurve]
    """Searches that scored candidates in the same way and found a finite perplexity."""
    left_out: list[str]
    """Names of searches for the same length that scored candidates in another way."""
    measure: str = "perplexity"
    """The name of what is on the vertical axis."""


def convergence(journals: Mapping[str, SearchJournal], name: str) -> Convergence:
    """Returns the search `name` and all that scored candidates as it did, on the same documents."""
    if name not in journals:
        return Convergence([], [])
    asked = journals[name].header.objective
    same_length = {
        other: journal
        for other, journal in journals.items()
        if journal.header.objective.target_length == asked.target_length
    }
    alike = {
        other: journal
        for other, journal in same_length.items()
        if journal.header.objective.comparable == asked.comparable
    }
    curves = [_curve(journal) for journal in alike.values() if journal.entries]
    usable = [curve for curve in curves if math.isfinite(curve.perplexities[-1])]
    return Convergence(
        usable, [other for other in same_length if other not in alike], asked.measure
    )


def _curve(journal: SearchJournal) -> SearchCurve:
    entries, whole = journal.entries, sum(journal.header.objective.lengths)
    return SearchCurve(
        searcher=journal.header.searcher,
        costs=list(itertools.accumulate(forward_equivalents(entry, whole) for entry in entries)),
        perplexities=best_so_far(
            (entry.evaluation.perplexity, entry.evaluation.completed) for entry in entries
        ),
        stopped_early=sum(entry.stopped_early for entry in entries),
        tokens=sum(entry.cost_tokens for entry in entries),
        backward_tokens=sum(entry.cost_tokens for entry in entries if entry.has_gradient),
        seconds=sum(entry.seconds for entry in entries),
    )
