"""Work handed out to data-parallel groups as they become free, its results on every rank in the
order asked."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from megatron_longrope.runtime import Runtime

Work = Callable[[int], dict[str, Any]]
"""Does item i on this rank's own model-parallel group; returns JSON values, the same on every rank
of the group."""
_CALLS = itertools.count()
"""Over all dispatchers of a process: what one call has written must not be taken for another's."""
_POLL_SECONDS = (0.002, 0.1)


class Dispatcher:
    """Hands out numbered items: each group takes the next one as soon as it has finished its last.

    Which group does which item depends on timing, what an item yields must not. All ranks call
    `in_order` together, with the same items, and get every result as soon as it and all before it
    are there.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def in_order(self, num_items: int, work: Work) -> Iterator[dict[str, Any]]:
        """Yields the results of items 0 … num_items − 1; a group of several ranks calls `work` on
        all of them."""
        call = next(_CALLS)
        if self.runtime.data_parallel_size == 1:
            yield from (work(item) for item in range(num_items))
            return
        board = _Board(self.runtime, f"dispatch/{call}")
        for wanted in range(num_items):
            while (result := board.result(wanted)) is None:
                item = board.next_item(wanted, num_items)
                if item is not None:
                    board.post(item, work(item))
            yield result


class _Board:
    """One call's items and results in the store all ranks share."""

    def __init__(self, runtime: Runtime, prefix: str) -> None:
        self._store, self._prefix = runtime.store, prefix
        self._group, self._leads = runtime.data_parallel_rank, runtime.leads_group
        self._is_shared = runtime.world_size > runtime.data_parallel_size
        self._num_plans = 0
        self._all_taken = False
        self._results: dict[int, dict[str, Any]] = {}

    def result(self, item: int) -> dict[str, Any] | None:
        """The result of `item` if this rank has seen it."""
        return self._results.pop(item, None)

    def next_item(self, wanted: int, num_items: int) -> int | None:
        """The item this group is to do next; None once the result of `wanted` is there instead.

        The leader decides for its group and writes it down for the others: they might see results
        at other moments.
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
        """Shows all other groups what `item` came to."""
        if self._leads:
            self._store.set(self._result_key(item), json.dumps(result))

    def _decide(self, wanted: int, num_items: int) -> int:
        if not self._all_taken and not self._store.check([self._result_key(wanted)]):
            item = self._store.add(f"{self._prefix}/taken", 1) - 1
            if item < num_items:
                return int(item)
            self._all_taken = True
        return -1

    def _result_key(self, item: int) -> str:
        return f"{self._prefix}/result/{item}"

    def _wait(self, key: str) -> bytes:
        """The value at `key`, once it is there; short sleeps, so that signals are heard."""
        pause, longest = _POLL_SECONDS
        while not self._store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, longest)
        value: bytes = self._store.get(key)
        return value
