"""The markers of a run directory's stages, read and compared on one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_longrope.artifacts.records import read_record
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.stages import StageMarker
from megatron_longrope.atomic import json_text
from megatron_longrope.errors import InputError

Json = Any
"""A JSON value."""


@dataclass(frozen=True)
class StageMarkers:
    """The markers in `stages/` of a run directory."""

    directory: RunDirectory

    def read(self, name: str) -> StageMarker | None:
        """Returns the marker of a stage, None where it was never begun.

        Raises InputError for a damaged one.
        """
        path = self.directory.stage(name)
        if not path.exists():
            return None
        try:
            return read_record(path, StageMarker)
        except InputError as error:
            rule = f"damaged marker ({error.rule}); delete it to run the stage again"
            raise InputError("stage", path, rule) from error

    def complete(self, name: str) -> StageMarker:
        """Returns the marker of a complete stage; raises InputError for others."""
        marker = self.read(name)
        if marker is None or not marker.is_done:
            raise InputError("stage", name, f"not complete in {self.directory.root}; run it first")
        return marker

    def check(self, name: str, inputs: Mapping[str, Json], added: Collection[str] = ()) -> Json:
        """Returns the result of a stage, None unless it is complete with these inputs.

        Raises InputError that names the first input which differs from what the stage was begun
        with, but for those in `added`, where the marker does not name them.
        """
        marker = self.read(name)
        if marker is None:
            return None
        check_inputs(name, marker.inputs, as_read_back(inputs), added)
        return marker.result if marker.is_done else None


def check_inputs(
    name: str, before: Mapping[str, Json], now: Mapping[str, Json], added: Collection[str] = ()
) -> None:
    """Raises InputError that names the first input of a stage which is not what it was `before`.

    Inputs in `added` count only where the marker names them: earlier versions did not.
    """
    for key in sorted({*before, *now}):
        if key in added and key not in before:
            continue
        if before.get(key) != now.get(key):
            place, was, now_is = _first_difference(key, before.get(key), now.get(key))
            raise InputError(
                f"stage {name}",
                place,
                f"this input changed since the run began ({_short(was)} → {_short(now_is)}); "
                "use another run directory, or delete this stage's marker and what follows from it",
            )


def _first_difference(place: str, before: Json, now: Json) -> tuple[str, Json, Json]:
    """Returns where two values differ first, as a dotted place, and both values there."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return _first_difference(f"{place}.{key}", before.get(key), now.get(key))
    return place, before, now


def as_read_back(values: Json) -> Json:
    """Returns JSON values as a marker gives them back: lists for tuples, None for NaN and ∞."""
    return json.loads(json_text(values))


def json_sha256(values: Json) -> str:
    """Returns the SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _short(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
