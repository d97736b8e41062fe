"""Evaluation tasks, the search objective, and the methods every table compares.

Each name is imported when it is first used, so that a command line can list the tasks without
importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_longrope.evaluation.answers import answers_retrieved as answers_retrieved
    from megatron_longrope.evaluation.answers import greedy_decode as greedy_decode
    from megatron_longrope.evaluation.baselines import ComparedMethod as ComparedMethod
    from megatron_longrope.evaluation.baselines import baseline_methods as baseline_methods
    from megatron_longrope.evaluation.baselines import (
        with_attention_factor as with_attention_factor,
    )
    from megatron_longrope.evaluation.documents import EvaluationDocument as EvaluationDocument
    from megatron_longrope.evaluation.documents import Tokens as Tokens
    from megatron_longrope.evaluation.documents import check_documents as check_documents
    from megatron_longrope.evaluation.documents import documents_sha256 as documents_sha256
    from megatron_longrope.evaluation.objective import PerplexityObjective as PerplexityObjective
    from megatron_longrope.evaluation.objective import factors_of as factors_of
    from megatron_longrope.evaluation.objective_parts import ObjectivePart as ObjectivePart
    from megatron_longrope.evaluation.perplexity import (
        PerplexityMeasurement as PerplexityMeasurement,
    )
    from megatron_longrope.evaluation.perplexity import measure_perplexity as measure_perplexity
    from megatron_longrope.evaluation.perplexity import rows_of_losses as rows_of_losses
    from megatron_longrope.evaluation.perplexity import token_losses as token_losses
    from megatron_longrope.evaluation.sliding_window import SlidingWindow as SlidingWindow
    from megatron_longrope.evaluation.tasks import TASKS as TASKS

_MODULE_OF = {
    "ComparedMethod": "baselines",
    "EvaluationDocument": "documents",
    "ObjectivePart": "objective_parts",
    "PerplexityMeasurement": "perplexity",
    "PerplexityObjective": "objective",
    "SlidingWindow": "sliding_window",
    "TASKS": "tasks",
    "Tokens": "documents",
    "answers_retrieved": "answers",
    "baseline_methods": "baselines",
    "check_documents": "documents",
    "documents_sha256": "documents",
    "factors_of": "objective",
    "greedy_decode": "answers",
    "measure_perplexity": "perplexity",
    "rows_of_losses": "perplexity",
    "token_losses": "perplexity",
    "with_attention_factor": "baselines",
}


def __getattr__(name: str) -> Any:
    """Imports the module that defines `name`."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
