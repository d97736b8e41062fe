"""Work that one process does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_longrope.errors import LongRopeError
from megatron_longrope.runtime import Runtime


def on_main(runtime: Runtime, work: Callable[[], Any]) -> Any:
    """Returns on every rank what `work` returns on the main one; an error of ours there is raised
    on all."""
    outcome: Any = None
    if runtime.is_main:
        try:
            outcome = work()
        except LongRopeError as error:
            outcome = error
    outcome = runtime.broadcast(outcome)
    if isinstance(outcome, LongRopeError):
        raise outcome
    return outcome
