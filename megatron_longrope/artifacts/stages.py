"""The stages of a run: their markers in `stages/NAME.json`, and their lines in the result."""

from __future__ import annotations

from typing import Any, Literal

from megatron_longrope.artifacts.records import FileRecord, Seconds


class StageMarker(FileRecord):
    """The marker of a stage: what it was started with and, once it is done, its result."""

    status: Literal["started", "done"]
    inputs: dict[str, Any]
    """JSON values of everything that the stage's result depends on."""
    seconds: Seconds
    """Wall time of the stage's work, over all attempts."""
    result: Any = None
    """JSON value that later stages read, in a form of the stage's own."""

    @property
    def is_done(self) -> bool:
        """Whether the stage is complete and `result` is valid."""
        return self.status == "done"


class StageRecord(FileRecord):
    """A stage in the result of a run."""

    name: str
    seconds: Seconds
    """Wall time of the stage's work, over all attempts."""
    status: str
    """Whether this run did the stage ("done") or an earlier one ("skipped")."""
