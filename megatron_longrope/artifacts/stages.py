"""Stages of a run: the marker each leaves in `stages/NAME.json`, and its line in the result."""

from __future__ import annotations

from typing import Any, Literal

from megatron_longrope.artifacts.records import FileRecord, Seconds


class StageMarker(FileRecord):
    """What a stage was begun with, and once it is done its result; `seconds` is its work's time.

    `inputs` and `result` are JSON values of the stage's own.
    """

    status: Literal["started", "done"]
    inputs: dict[str, Any]
    seconds: Seconds
    result: Any = None

    @property
    def is_done(self) -> bool:
        """Whether the stage is complete and `result` stands."""
        return self.status == "done"


class StageRecord(FileRecord):
    """A stage in a run's result: what it cost, in seconds, and whether this run or an earlier one
    did it ("done" or "skipped")."""

    name: str
    seconds: Seconds
    status: str
