"""The cost of evaluations on a model, as results and stage markers hold it."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrope.artifacts.cost import SearchCost
from megatron_longrope.evaluation import ScoringCost
from megatron_longrope.search import JournalEntry


def search_cost(entries: Sequence[JournalEntry], scoring: ScoringCost) -> SearchCost:
    """Returns the cost of evaluations; `scoring` knows the model and the documents."""
    passes = sum(scoring.forward_equivalents(entry.evaluation) for entry in entries)
    return SearchCost.of(entries, passes * scoring.whole_flops)
