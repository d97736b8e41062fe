"""Work shared out among data-parallel groups, its results on every rank in the order asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from megatron_longrope.errors import LongRopeError
from megatron_longrope.runtime import Runtime

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def spread(
    runtime: Runtime, items: Sequence[ItemT], work: Callable[[ItemT], ResultT]
) -> list[ResultT]:
    """Returns `work(item)` of every item, the same objects' values in the same order on every rank.

    Group g of n does items g, g + n, …; each rank of a group calls `work` with the same items in
    the same order, so that it may use the group's own TP×PP×CP collectives. All ranks must come
    here with the same `items`.
    """
    size, rank = runtime.data_parallel_size, runtime.data_parallel_rank
    mine = {index: work(items[index]) for index in range(rank, len(items), size)}
    if size == 1:
        return [mine[index] for index in range(len(items))]
    # Where several ranks hold one result, all take the lowest rank's: identical everywhere, to the
    # last bit.
    results: dict[int, ResultT] = {}
    for num_items, share in runtime.gather((len(items), mine)):
        if num_items != len(items):
            raise LongRopeError(
                f"ranks disagree about the work to share: {num_items} and {len(items)} items"
            )
        results = share | results
    return [results[index] for index in range(len(items))]
