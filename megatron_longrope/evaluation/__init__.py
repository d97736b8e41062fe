"""Perplexity, passkey retrieval, the search objective, the methods every table compares, and result
files."""

from megatron_longrope.artifacts.results import aggregate, read_rows, write_rows
from megatron_longrope.artifacts.rows import (
    EvaluationLabels,
    PasskeyRow,
    PerplexityRow,
    PositionRow,
    perplexity_of,
)
from megatron_longrope.evaluation.baselines import (
    ComparedMethod,
    baseline_methods,
    with_attention_factor,
)
from megatron_longrope.evaluation.documents import (
    EvaluationDocument,
    Tokens,
    check_documents,
    documents_sha256,
)
from megatron_longrope.evaluation.objective import ObjectivePart, PerplexityObjective, factors_of
from megatron_longrope.evaluation.passkey import answers_retrieved, greedy_decode, measure_passkey
from megatron_longrope.evaluation.perplexity import (
    PerplexityMeasurement,
    SlidingWindow,
    measure_perplexity,
    token_losses,
)

__all__ = [
    "ComparedMethod",
    "EvaluationDocument",
    "EvaluationLabels",
    "ObjectivePart",
    "PasskeyRow",
    "PerplexityMeasurement",
    "PerplexityObjective",
    "PerplexityRow",
    "PositionRow",
    "SlidingWindow",
    "Tokens",
    "aggregate",
    "answers_retrieved",
    "baseline_methods",
    "check_documents",
    "documents_sha256",
    "factors_of",
    "greedy_decode",
    "measure_passkey",
    "measure_perplexity",
    "perplexity_of",
    "read_rows",
    "token_losses",
    "with_attention_factor",
    "write_rows",
]
