"""The three searches of the method: their spaces and starts, objective, journal and cost."""

from megatron_longrope.pipeline.searching.cost import search_cost
from megatron_longrope.pipeline.searching.objective import (
    PASS_TOKENS,
    held_out_objective,
    judged_on,
    loss_in_words,
    search_objective,
)
from megatron_longrope.pipeline.searching.problems import (
    SearchProblem,
    extension_search,
    first_search,
    longrope_attention_factor_of,
    methods_compared,
    published_yarn,
    recovery_search,
    search_name,
    second_interpolation,
    second_search,
)
from megatron_longrope.pipeline.searching.ramps import SEARCHED_RAMP, best_ramp
from megatron_longrope.pipeline.searching.running import Show, search_factors, shared_journal

__all__ = [
    "PASS_TOKENS",
    "SEARCHED_RAMP",
    "SearchProblem",
    "Show",
    "best_ramp",
    "extension_search",
    "first_search",
    "held_out_objective",
    "judged_on",
    "longrope_attention_factor_of",
    "loss_in_words",
    "methods_compared",
    "published_yarn",
    "recovery_search",
    "search_cost",
    "search_factors",
    "search_name",
    "search_objective",
    "second_interpolation",
    "second_search",
    "shared_journal",
]
