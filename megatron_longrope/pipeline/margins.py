"""What a search gained over every baseline, on the documents it searched on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable

from megatron_longrope.artifacts.cost import SearchCost
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.summaries import BaselineMargin
from megatron_longrope.atomic import finite_or_none
from megatron_longrope.evaluation import ComparedMethod, PerplexityObjective
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    judged_on,
    search_cost,
    shared_journal,
)
from megatron_longrope.rope import RopeFactors
from megatron_longrope.search import (
    Candidate,
    Evaluation,
    JournalEntry,
    Provenance,
    SearchOutcome,
    Terms,
    paired_margin,
)

Count = Callable[[int, int, str], None]
"""Is called with baselines done, baselines in all, and what they are."""


def baseline_margins(
    problem: SearchProblem,
    objective: PerplexityObjective,
    outcome: SearchOutcome,
    directory: RunDirectory,
    documents_sha256: str,
    show: Count | None = None,
) -> tuple[list[BaselineMargin], SearchCost]:
    """Returns how much worse every baseline is than the best candidate, and what finding out cost.

    Each baseline has a row with its own attention factor and one with the searched attention
    factor. A row holds the perplexity, its ratio to the best candidate's, and a 95 % interval of
    that ratio over documents. Baselines that the search has scored are taken from its journal; what
    is scored here has a journal of its own, so that nothing is scored twice. All ranks come here
    together.

    Args:
        problem: The search, with its baselines.
        objective: What scored its candidates.
        outcome: What the search found.
        directory: The directory of the search, which gets the journal of baselines.
        documents_sha256: Identifies the documents searched on.
        show: Is called after each baseline.
    """
    own = list(problem.baselines)
    methods = [*own, *(method.with_searched(outcome.best.attention_factor) for method in own)]
    length = problem.length
    candidates = [candidate_of(method.factors_at(length).for_length(length)) for method in methods]
    found = {
        entry.candidate: entry.evaluation for entry in outcome.entries if entry.evaluation.completed
    }
    scored = objective.without_ladder()
    judged_by = judged_on(scored, documents_sha256)
    digest = hashlib.sha256(json.dumps(judged_by, sort_keys=True).encode()).hexdigest()[:8]
    path = directory.journal(f"baselines/{length}-{digest}")
    with shared_journal(
        objective.model.runtime, path, {"searcher": "baselines"}, judged_by
    ) as journal:
        found |= {entry.candidate: entry.evaluation for entry in journal.entries}
        missing = [candidate for candidate in dict.fromkeys(candidates) if candidate not in found]
        num_wanted, before = len(journal.entries) + len(missing), time.monotonic()
        for evaluation, candidate in zip(scored.stream(missing, Terms()), missing, strict=True):
            now, index = time.monotonic(), len(journal.entries)
            journal.append(
                JournalEntry(
                    index,
                    candidate,
                    Provenance(0, "baseline"),
                    evaluation,
                    now - before,
                    evaluation.cost_tokens,
                )
            )
            found[candidate], before = evaluation, now
            if show is not None:
                show(index + 1, num_wanted, "baselines")
        cost = search_cost(journal.entries, objective.model.shape, length)
    rows = [
        _margin(method, outcome.evaluation, found[candidate])
        for method, candidate in zip(methods, candidates, strict=True)
    ]
    return rows, cost


def candidate_of(factors: RopeFactors) -> Candidate:
    """Returns the λ, n̂ and t of factors as a candidate of a search."""
    return Candidate(factors.rescale, factors.start_tokens, factors.attention_factor)


def _margin(method: ComparedMethod, ours: Evaluation, other: Evaluation) -> BaselineMargin:
    margin = paired_margin(ours, other)
    return BaselineMargin(
        method=method.name,
        attention_factor=method.attention_factor,
        perplexity=finite_or_none(other.perplexity),
        ratio=finite_or_none(margin.ratio),
        low=finite_or_none(margin.low),
        high=finite_or_none(margin.high),
    )
