"""Work handed out to data-parallel groups as they become free, with results in order on all ranks.

Unlike `spread`, which deals items out beforehand, this suits items of unknown cost: a candidate
that is stopped early takes a fraction of the time of one that is not.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from megatron_longrope.runtime import Runtime

Work = Callable[[int], dict[str, Any]]
"""Does item i on this rank's own model-parallel group. Returns JSON values, the same on every rank
of the group."""
_CALLS = itertools.count()
"""Numbers the calls of all dispatchers of a process, so that no call reads another call's keys."""
_POLL_SECONDS = (0.002, 0.1)
"""The first and the longest pause between two looks into the store."""


class Dispatcher:
    """Hands out numbered items: each group takes the next one as soon as it has finished its last.

    Which group does which item depends on timing; what an item yields must not. All ranks call
    `in_order` together, with the same items, and get each result as soon as it and all results
    before it are known.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def in_order(self, num_items: int, work: Work) -> Iterator[dict[str, Any]]:
        """Yields the results of items 0 … num_items − 1, in that order, on every rank.

        All ranks of a model-parallel group call `work` with the same items, so that `work` may use
        the group's collectives.
        """
        call = next(_CALLS)
        if self.runtime.data_parallel_size == 1:
            yield from (work(item) for item in range(num_items))
            return
        board = _Board(self.runtime, f"dispatch/{call}")
        # A group that waits for a result does other items meanwhile, while there are any left.
        for wanted in range(num_items):
            while (result := board.result(wanted)) is None:
                item = board.next_item(wanted, num_items)
                if item is not None:
                    board.post(item, work(item))
            yield result


class _Board:
    """The items and results of one call, in the key-value store that all ranks share.

    `taken` counts the items handed out, `result/ITEM` holds what an item came to, and
    `plan/GROUP/NUMBER` what the leader of a group decided for the group's NUMBER-th step.
    """

    def __init__(self, runtime: Runtime, prefix: str) -> None:
        self._store, self._prefix = runtime.store, prefix
        self._group, self._leads = runtime.data_parallel_rank, runtime.leads_group
        self._is_shared = runtime.world_size > runtime.data_parallel_size
        self._num_plans = 0
        self._all_taken = False
        self._results: dict[int, dict[str, Any]] = {}

    def result(self, item: int) -> dict[str, Any] | None:
        """Returns the result of `item` and forgets it; None where this rank has not read it yet."""
        return self._results.pop(item, None)

    def next_item(self, wanted: int, num_items: int) -> int | None:
        """Returns the item this group does next; None once the result of `wanted` can be read.

        The leader decides for its group and writes the decision down for the group's other ranks.
        These might see a result a moment earlier or later than the leader, decide otherwise, and
        wait forever in a collective that the leader never enters.
        """
        plan = self._decide(wanted, num_items) if self._leads else None
        if self._is_shared:
            key = f"{self._prefix}/plan/{self._group}/{self._num_plans}"
            self._num_plans += 1
            if plan is not None:
                self._store.set(key, str(plan))
            else:
                plan = int(self._wait(key))
        assert plan is not None
        if plan >= 0:
            return plan
        self._results[wanted] = json.loads(self._wait(self._result_key(wanted)))
        return None

    def post(self, item: int, result: dict[str, Any]) -> None:
        """Shows the result of `item` to all groups."""
        if self._leads:
            self._store.set(self._result_key(item), json.dumps(result))

    def _decide(self, wanted: int, num_items: int) -> int:
        """Returns the next item that nobody has taken; −1 to wait for the result of `wanted`."""
        if not self._all_taken and not self._store.check([self._result_key(wanted)]):
            item = self._store.add(f"{self._prefix}/taken", 1) - 1
            if item < num_items:
                return int(item)
            self._all_taken = True
        return -1

    def _result_key(self, item: int) -> str:
        return f"{self._prefix}/result/{item}"

    def _wait(self, key: str) -> bytes:
        """Returns the value at `key` once it is there.

        The store's own `wait` blocks in C++, where no signal is handled; short sleeps leave time
        for SIGTERM and Ctrl-C.
        """
        pause, longest = _POLL_SECONDS
        while not self._store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, longest)
        value: bytes = self._store.get(key)
        return value
