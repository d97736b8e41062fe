"""What a search gained over every baseline, on the documents it searched on and on others."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_longrope.artifacts.cost import SearchCost
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.summaries import BaselineMargin, HeldOutMargins
from megatron_longrope.atomic import finite_or_none
from megatron_longrope.evaluation import (
    ComparedMethod,
    EvaluationDocument,
    PerplexityObjective,
    documents_sha256,
)
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    judged_on,
    loss_in_words,
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
    methods = _compared(problem, outcome)
    found = {
        entry.candidate: entry.evaluation for entry in outcome.entries if entry.evaluation.completed
    }
    journal = _Journal(directory, "baselines", "baseline", documents_sha256)
    cost = _score_missing(objective, list(methods.values()), found, journal, show)
    rows = [
        _margin(method, objective, outcome.evaluation, found[candidate])
        for method, candidate in methods.items()
    ]
    return rows, cost


def held_out_margins(
    problem: SearchProblem,
    objective: PerplexityObjective,
    outcome: SearchOutcome,
    directory: RunDirectory,
    documents: Sequence[EvaluationDocument],
    show: Count | None = None,
) -> HeldOutMargins:
    """Returns the same rows on documents nobody searched on, where the best factors and every
    baseline are scored once, journalled like baselines. All ranks come here together.

    Args:
        problem: whose baselines are compared.
        objective: of the held-out documents.
        outcome: the search's end.
        directory: gets `journals/held-out/`.
        documents: those `objective` is of.
        show: told how many are done.
    """
    methods = _compared(problem, outcome)
    found: dict[Candidate, Evaluation] = {}
    sha256 = documents_sha256(documents)
    journal = _Journal(directory, "held-out", "held-out", sha256)
    cost = _score_missing(objective, [outcome.best, *methods.values()], found, journal, show)
    ours = found[outcome.best]
    return HeldOutMargins(
        sha256=sha256,
        documents=tuple(document.name for document in documents),
        perplexity=finite_or_none(ours.perplexity),
        baselines=tuple(
            _margin(method, objective, ours, found[candidate])
            for method, candidate in methods.items()
        ),
        cost=cost,
    )


@dataclass(frozen=True)
class _Journal:
    """Where evaluations beside a search are kept: `journals/FOLDER/`, entries of one origin."""

    directory: RunDirectory
    folder: str
    origin: str
    documents_sha256: str


def _compared(problem: SearchProblem, outcome: SearchOutcome) -> dict[ComparedMethod, Candidate]:
    """Every baseline with its own attention factor, then with the one found, as a search sees
    them."""
    own = list(problem.baselines)
    methods = [*own, *(method.with_searched(outcome.best.attention_factor) for method in own)]
    length = problem.length
    return {
        method: candidate_of(method.factors_at(length).for_length(length)) for method in methods
    }


def _score_missing(
    objective: PerplexityObjective,
    candidates: Sequence[Candidate],
    found: dict[Candidate, Evaluation],
    kept: _Journal,
    show: Count | None,
) -> SearchCost:
    """Adds to `found` what its journal holds and what is still missing of `candidates`, each scored
    once; returns what all of the journal's evaluations took."""
    scored, length = objective.without_ladder(), objective.target_length
    judged_by = judged_on(scored, kept.documents_sha256)
    digest = hashlib.sha256(json.dumps(judged_by, sort_keys=True).encode()).hexdigest()[:8]
    path = kept.directory.journal(f"{kept.folder}/{length}-{digest}")
    with shared_journal(
        objective.model.runtime, path, {"searcher": kept.folder}, judged_by
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
                    Provenance(0, kept.origin),
                    evaluation,
                    now - before,
                    evaluation.cost_tokens,
                )
            )
            found[candidate], before = evaluation, now
            if show is not None:
                show(index + 1, num_wanted, kept.folder)
        return search_cost(journal.entries, objective.cost)


def candidate_of(factors: RopeFactors) -> Candidate:
    """Returns the λ, n̂ and t of factors as a candidate of a search."""
    return Candidate(factors.rescale, factors.start_tokens, factors.attention_factor)


def _margin(
    method: ComparedMethod, objective: PerplexityObjective, ours: Evaluation, other: Evaluation
) -> BaselineMargin:
    margin = paired_margin(ours, other, objective.scored_parts)
    return BaselineMargin(
        method=method.name,
        attention_factor=method.attention_factor,
        **loss_in_words(objective, other),
        ratio=finite_or_none(margin.ratio),
        low=finite_or_none(margin.low),
        high=finite_or_none(margin.high),
    )
