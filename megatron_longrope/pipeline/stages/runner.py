"""Stages that are done once: skipped when complete, refused when their inputs have changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_longrope.artifacts.run_directory import RunDirectory, write_json
from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.runtime import Runtime

Json = Any
STARTED, DONE = "started", "done"


@dataclass
class StageRunner:
    """Runs the stages of one run directory, in order, on all ranks alike; the main rank keeps the
    markers."""

    directory: RunDirectory
    runtime: Runtime
    announce: Callable[[str], None] = lambda text: None
    records: list[dict[str, Json]] = field(default_factory=list)

    def run(self, name: str, inputs: Mapping[str, Json], work: Callable[[], Json]) -> Json:
        """Returns what `work` returns (JSON values), from the marker where the stage is complete.

        Raises InputError that names the first input which differs from those the stage was begun
        with.
        """
        inputs = json.loads(json.dumps(inputs))
        marker = self.runtime.broadcast(self._read(name) if self.runtime.is_main else None)
        if isinstance(marker, LongRopeError):
            raise marker
        if marker is not None:
            self._check(name, marker["inputs"], inputs)
        if marker is not None and marker["status"] == DONE:
            self.announce(f"{name}: done before, skipped")
            self._record(name, marker["seconds"], "skipped")
            return marker["result"]
        spent = marker["seconds"] if marker else 0.0
        self._write(name, {"status": STARTED, "inputs": inputs, "seconds": spent})
        self.announce(name)
        started = time.monotonic()
        result = json.loads(json.dumps(work()))
        seconds = time.monotonic() - started
        self._write(name, {"status": DONE, "inputs": inputs, "seconds": seconds, "result": result})
        self._record(name, seconds, "done")
        return result

    def require(self, name: str, inputs: Mapping[str, Json]) -> None:
        """Raises InputError unless the stage is complete and its inputs are as they were then."""
        marker = self._complete(name)
        self._check(name, marker["inputs"], json.loads(json.dumps(inputs)))
        self._record(name, marker["seconds"], "skipped")

    def result(self, name: str) -> Json:
        """Returns what a complete stage returned; raises InputError where it is not complete."""
        return self._complete(name)["result"]

    def _complete(self, name: str) -> dict[str, Json]:
        """The marker of a stage that is done, on all ranks."""
        marker = self.runtime.broadcast(self._read(name) if self.runtime.is_main else None)
        if isinstance(marker, LongRopeError):
            raise marker
        if marker is None or marker["status"] != DONE:
            raise InputError("stage", name, f"not complete in {self.directory.root}; run it first")
        return dict(marker)

    def _read(self, name: str) -> dict[str, Json] | LongRopeError | None:
        path = self.directory.stage(name)
        if not path.exists():
            return None
        try:
            marker: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
            return {key: marker[key] for key in ("status", "inputs", "seconds")} | {
                "result": marker.get("result")
            }
        except (ValueError, KeyError, TypeError) as error:
            return InputError(
                "stage", path, f"damaged marker ({error}); delete it to run the stage again"
            )

    def _check(self, name: str, before: Mapping[str, Json], now: Mapping[str, Json]) -> None:
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise InputError(
                    f"stage {name}",
                    key,
                    f"this input changed since the run began ({_short(before.get(key))} → "
                    f"{_short(now.get(key))}); "
                    "use another run directory, or delete this stage's marker and what follows "
                    "from it",
                )

    def _write(self, name: str, marker: Mapping[str, Json]) -> None:
        if self.runtime.is_main:
            write_json(self.directory.stage(name), marker)
        self.runtime.barrier()

    def _record(self, name: str, seconds: float, status: str) -> None:
        self.records.append({"name": name, "seconds": round(seconds, 2), "status": status})


def _short(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
