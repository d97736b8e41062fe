"""Runs stages once: skips what is complete, and refuses what has other inputs than before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_longrope.artifacts.records import read_record, write_record
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.stages import StageMarker, StageRecord
from megatron_longrope.atomic import json_text
from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.runtime import Runtime

Json = Any
"""A JSON value."""


@dataclass
class StageRunner:
    """Runs the stages of one run directory, in order, on all ranks; the main rank keeps markers."""

    directory: RunDirectory
    runtime: Runtime
    announce: Callable[[str], None] = lambda text: None
    records: list[StageRecord] = field(default_factory=list)

    def run(self, name: str, inputs: Mapping[str, Json], work: Callable[[], Json]) -> Json:
        """Returns the JSON values that `work` returns; from the marker if the stage is complete.

        Raises InputError that names the first input which differs from what the stage was begun
        with.
        """
        present: dict[str, Json] = _as_read_back(inputs)
        marker = self.runtime.broadcast(self._read(name) if self.runtime.is_main else None)
        if isinstance(marker, LongRopeError):
            raise marker
        if marker is not None:
            self._check(name, marker.inputs, present)
        if marker is not None and marker.is_done:
            self.announce(f"{name}: done before, skipped")
            self._record(name, marker.seconds, "skipped")
            return marker.result
        spent = marker.seconds if marker else 0.0
        self._write(name, StageMarker(status="started", inputs=present, seconds=spent))
        self.announce(name)
        started = time.monotonic()
        result = _as_read_back(work())
        seconds = time.monotonic() - started
        done = StageMarker(status="done", inputs=present, seconds=seconds, result=result)
        self._write(name, done)
        self._record(name, seconds, "done")
        return result

    def require(self, name: str, inputs: Mapping[str, Json]) -> None:
        """Raises InputError unless the stage is complete and its inputs are as they were then."""
        marker = self._complete(name)
        self._check(name, marker.inputs, _as_read_back(inputs))
        self._record(name, marker.seconds, "skipped")

    def result(self, name: str) -> Json:
        """Returns what the work of a stage returned; raises InputError unless it is complete."""
        return self._complete(name).result

    def _complete(self, name: str) -> StageMarker:
        """Returns the marker of a complete stage on all ranks; raises InputError for others."""
        marker: StageMarker | LongRopeError | None = self.runtime.broadcast(
            self._read(name) if self.runtime.is_main else None
        )
        if isinstance(marker, LongRopeError):
            raise marker
        if marker is None or not marker.is_done:
            raise InputError("stage", name, f"not complete in {self.directory.root}; run it first")
        return marker

    def _read(self, name: str) -> StageMarker | LongRopeError | None:
        path = self.directory.stage(name)
        if not path.exists():
            return None
        try:
            return read_record(path, StageMarker)
        except InputError as error:
            rule = f"damaged marker ({error.rule}); delete it to run the stage again"
            return InputError("stage", path, rule)

    def _check(self, name: str, before: Mapping[str, Json], now: Mapping[str, Json]) -> None:
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise InputError(
                    f"stage {name}",
                    key,
                    f"this input changed since the run began ({_short(before.get(key))} → "
                    f"{_short(now.get(key))}); use another run directory, or delete this stage's "
                    "marker and what follows from it",
                )

    def _write(self, name: str, marker: StageMarker) -> None:
        if self.runtime.is_main:
            write_record(self.directory.stage(name), marker)
        self.runtime.barrier()

    def _record(self, name: str, seconds: float, status: str) -> None:
        self.records.append(StageRecord(name=name, seconds=round(seconds, 2), status=status))


def _as_read_back(values: Json) -> Json:
    """Returns JSON values as a marker gives them back: lists for tuples, None for NaN and ∞."""
    return json.loads(json_text(values))


def _short(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
