"""What a search gained over every baseline, on the documents it searched on."""

from __future__ import annotations

import math
from typing import Any

from megatron_longrope.evaluation import PerplexityObjective, baseline_methods
from megatron_longrope.rope import RopeFactors
from megatron_longrope.search import Candidate, Evaluation, SearchOutcome, paired_margin


def baseline_margins(objective: PerplexityObjective, outcome: SearchOutcome) -> list[dict[str, Any]]:
    """Returns a row per baseline, each with its own temperature and with the one found: perplexity, and by which

    factor it exceeds the best one's, with a 95 % interval over documents. Costs an evaluation each; all ranks come
    here together.
    """
    length = objective.target_length
    methods = baseline_methods(objective.model.geometry, length, attention_factor=outcome.best.attention_factor)
    candidates = [candidate_of(method.factors_at(length).for_length(length)) for method in methods]
    evaluations = objective(candidates)
    return [
        {"method": method.name, "temperature": method.temperature, **_row(outcome.evaluation, evaluation)}
        for method, evaluation in zip(methods, evaluations, strict=True)
    ]


def candidate_of(factors: RopeFactors) -> Candidate:
    """Returns λ, n̂ and t of factors as a search sees them."""
    return Candidate(factors.rescale, factors.start_tokens, factors.attention_factor)


def _row(ours: Evaluation, other: Evaluation) -> dict[str, Any]:
    margin = paired_margin(ours, other)
    numbers = {"perplexity": other.perplexity, "ratio": margin.ratio, "low": margin.low, "high": margin.high}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
