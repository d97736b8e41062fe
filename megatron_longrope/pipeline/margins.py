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


def baseline_margins(
    problem: SearchProblem,
    objective: PerplexityObjective,
    outcome: SearchOutcome,
    directory: RunDirectory,
    documents_sha256: str,
    show: Count | None = None,
) -> tuple[list[BaselineMargin], SearchCost]:
    """Returns a row per baseline, each with its own attention factor and with the one found:
    perplexity, and by which factor it exceeds the best one's, with a 95 % interval over documents;
    and what that took. Baselines that the search evaluated itself are taken from it, and what is
    evaluated here is journalled: nothing is twice. All ranks come here together.
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
        _margin(method, objective, outcome.evaluation, found[candidate])
        for method, candidate in zip(methods, candidates, strict=True)
    ]
    return rows, cost


def candidate_of(factors: RopeFactors) -> Candidate:
    """Returns λ, n̂ and t of factors as a search sees them."""
    return Candidate(factors.rescale, factors.start_tokens, factors.attention_factor)


def _margin(
    method: ComparedMethod, objective: PerplexityObjective, ours: Evaluation, other: Evaluation
) -> BaselineMargin:
    margin = paired_margin(ours, other, objective.scored_parts)
    return BaselineMargin(
        method=method.name,
        attention_factor=method.attention_factor,
        perplexity=finite_or_none(other.perplexity),
        ratio=finite_or_none(margin.ratio),
        low=finite_or_none(margin.low),
        high=finite_or_none(margin.high),
    )
