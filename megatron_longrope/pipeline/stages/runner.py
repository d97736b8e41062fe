"""Runs stages once: skips what is complete, and refuses what has other inputs than before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from megatron_longrope.artifacts.records import write_record
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.stages import StageMarker, StageRecord
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.stages.markers import (
    Json,
    StageMarkers,
    as_read_back,
    check_inputs,
)
from megatron_longrope.runtime import Runtime


@dataclass
class StageRunner:
    """Runs the stages of one run directory, in order, on all ranks; the main rank keeps markers."""

    directory: RunDirectory
    runtime: Runtime
    announce: Callable[[str], None] = lambda text: None
    records: list[StageRecord] = field(default_factory=list)
    seconds_between_notes: float = 30.0
    """How often the time spent is noted during a stage: a kill loses no more than that."""

    def run(
        self,
        name: str,
        inputs: Mapping[str, Json],
        work: Callable[[], Json],
        added: Collection[str] = (),
    ) -> Json:
        """Returns the JSON values that `work` returns; from the marker if the stage is complete.

        The seconds of a stage are those of all attempts at it. Raises InputError that names the
        first input which differs from what the stage was begun with.

        Args:
            name: Name of the stage.
            inputs: JSON values that the result depends on.
            work: Does the stage.
            added: Inputs that markers of earlier versions do not name.
        """
        present: dict[str, Json] = as_read_back(inputs)
        marker = on_main(self.runtime, lambda: self._markers.read(name))
        if marker is not None:
            check_inputs(name, marker.inputs, present, added)
        if marker is not None and marker.is_done:
            self.announce(f"{name}: done before, skipped")
            self._record(name, marker.seconds, "skipped")
            return marker.result
        begun = StageMarker(
            status="started", inputs=present, seconds=marker.seconds if marker else 0.0
        )
        self._write(name, begun)
        self.announce(name)
        with self._noting_seconds(name, begun) as seconds:
            result = as_read_back(work())
        update = {"status": "done", "seconds": seconds(), "result": result}
        done = begun.model_copy(update=update)
        self._write(name, done)
        self._record(name, done.seconds, "done")
        return result

    def require(self, name: str, inputs: Mapping[str, Json], added: Collection[str] = ()) -> None:
        """Raises InputError unless the stage is complete and its inputs are as they were then."""
        marker = self.complete(name)
        check_inputs(name, marker.inputs, as_read_back(inputs), added)
        self._record(name, marker.seconds, "skipped")

    def complete(self, name: str) -> StageMarker:
        """Returns the marker of a complete stage on all ranks; raises InputError for others."""
        return on_main(self.runtime, lambda: self._markers.complete(name))

    @property
    def _markers(self) -> StageMarkers:
        return StageMarkers(self.directory)

    @contextmanager
    def _noting_seconds(self, name: str, begun: StageMarker) -> Iterator[Callable[[], float]]:
        """Keeps the seconds of all attempts in the marker while a stage is worked at.

        Yields a function that returns them. They are noted now and then, for a kill leaves no time
        to, and once more where the work raises.
        """
        started, ended = time.monotonic(), threading.Event()

        def spent() -> float:
            return begun.seconds + time.monotonic() - started

        def note() -> None:
            write_record(self.directory.stage(name), begun.model_copy(update={"seconds": spent()}))

        def keep_noting() -> None:
            while not ended.wait(self.seconds_between_notes):
                with suppress(OSError):  # a full disk is reported by what the stage itself writes
                    note()

        if not self.runtime.is_main:
            yield spent
            return
        thread = threading.Thread(target=keep_noting, name=f"seconds of {name}", daemon=True)
        thread.start()
        is_whole = False
        try:
            yield spent
            is_whole = True
        finally:
            ended.set()
            thread.join()
            if not is_whole:
                with suppress(OSError):  # or it would hide what the work raised
                    note()

    def _write(self, name: str, marker: StageMarker) -> None:
        if self.runtime.is_main:
            write_record(self.directory.stage(name), marker)
        self.runtime.barrier()

    def _record(self, name: str, seconds: float, status: str) -> None:
        self.records.append(StageRecord(name=name, seconds=round(seconds, 2), status=status))
