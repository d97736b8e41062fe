"""The cost of evaluations on a model, as results and stage markers hold it."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrope.artifacts.cost import SearchCost
from megatron_longrope.model import ModelShape
from megatron_longrope.search import JournalEntry


def search_cost(entries: Sequence[JournalEntry], shape: ModelShape, length: int) -> SearchCost:
    """Returns the cost of evaluations on inputs of `length` tokens, on a model of this shape."""
    return SearchCost.of(entries, shape.forward_flops(length) / length)
