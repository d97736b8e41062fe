"""Work that the main process does for all, such as writing files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from megatron_longrope.errors import LongRopeError
from megatron_longrope.runtime import Runtime

ResultT = TypeVar("ResultT")


def on_main(runtime: Runtime, work: Callable[[], ResultT]) -> ResultT:
    """Returns on every rank what `work` returns on the main one; all ranks come here together.

    A LongRopeError on the main rank is raised on all, so that no rank waits for one that has ended.
    """
    outcome: ResultT | LongRopeError | None = None
    if runtime.is_main:
        try:
            outcome = work()
        except LongRopeError as error:
            outcome = error
    shared: ResultT | LongRopeError = runtime.broadcast(outcome)
    if isinstance(shared, LongRopeError):
        raise shared
    return shared
