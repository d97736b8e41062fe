"""Work dealt out to data-parallel groups beforehand, with its results in order on every rank."""

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
    """Returns `work(item)` of every item, in the order of `items`, with equal values on every rank.

    Group g of n does items g, g + n, …; all ranks of a group call `work` with the same items in the
    same order, so that `work` may use the group's own TP×PP×CP collectives. All ranks must come
    here with the same `items`. Results must be picklable.
    """
    size, rank = runtime.data_parallel_size, runtime.data_parallel_rank
    mine = {index: work(items[index]) for index in range(rank, len(items), size)}
    if size == 1:
        return [mine[index] for index in range(len(items))]
    # All ranks of a group hold their group's results, and these may differ in the last bit. Shares
    # come in the order of ranks and `share | results` keeps what is there already, so that every
    # rank ends with the lowest rank's copy.
    results: dict[int, ResultT] = {}
    for num_items, share in runtime.gather((len(items), mine)):
        if num_items != len(items):
            raise LongRopeError(
                f"ranks disagree about the work to share: {num_items} and {len(items)} items"
            )
        results = share | results
    return [results[index] for index in range(len(items))]
