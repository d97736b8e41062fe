"""What evaluations cost, as results and stage markers hold it."""

from __future__ import annotations

from typing import Any

from megatron_longrope.model import ModelShape
from megatron_longrope.report.convergence import BACKWARD_OVER_FORWARD
from megatron_longrope.search import SearchCost, SearchOutcome


def search_cost_json(outcome: SearchOutcome, shape: ModelShape, length: int) -> dict[str, Any]:
    """Returns what a search took: as `cost_json`, and how many candidates were stopped early."""
    return {**cost_json(outcome.cost, shape, length), "stopped_early": outcome.stopped_early}


def cost_json(cost: SearchCost, shape: ModelShape, length: int) -> dict[str, Any]:
    """Returns evaluations, tokens forward and backward, floating-point operations of inputs of
    `length`, seconds.

    A backward pass without weight gradients is counted as one and a half forward passes.
    """
    per_token = shape.forward_flops(length) / length
    return {
        "evaluations": cost.evaluations,
        "tokens": cost.tokens,
        "backward_tokens": cost.backward_tokens,
        "flops": per_token * (cost.tokens + BACKWARD_OVER_FORWARD * cost.backward_tokens),
        "seconds": cost.seconds,
    }
