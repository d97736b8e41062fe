"""The base class of the schemas of a run's files, and the functions that read and write them.

Whatever is wrong with a file becomes one InputError that names the file and the place in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_longrope.atomic import write_json_file
from megatron_longrope.errors import InputError

Count = Annotated[int, Field(ge=0)]
"""A number of things, which may be 0."""
Tokens = Annotated[int, Field(gt=0)]
"""A positive number of tokens."""
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A duration in seconds."""


class FileRecord(BaseModel):
    """One row or object of a file: a wrong type is an error, unknown keys are ignored.

    Files of newer versions, which may have further keys, can therefore be read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())


RecordT = TypeVar("RecordT", bound=FileRecord)


def write_record(path: Path, record: FileRecord) -> None:
    """Writes `record` to `path` as JSON, whole or not at all; NaN and infinities become null."""
    write_json_file(path, record.model_dump())


def read_record(path: Path, kind: type[RecordT]) -> RecordT:
    """Returns the JSON object in `path` as a `kind`; raises InputError where it is none."""
    return as_record(read_json(path), kind, path)


def read_json(path: Path) -> Any:
    """Returns the JSON value in `path`; raises InputError where it is damaged or not UTF-8."""
    return _decode(read_text(path), path, None)


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of `path`; raises InputError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("file", path, f"cannot be read as UTF-8 text: {error}") from error


def read_json_lines(path: Path, kind: type[RecordT]) -> list[RecordT]:
    """Returns the objects of a JSON-lines file, each as a `kind`; raises InputError for a bad line.

    A process killed while writing leaves a last line without its newline, which is left out.
    """
    return [
        parse_line(line, number, kind, path) for number, line in enumerate(whole_lines(path), 1)
    ]


def whole_lines(path: Path) -> list[str]:
    """Returns the lines of a text file that end with a newline, without that newline."""
    *lines, _ = read_text(path).split("\n")
    return lines


def parse_line(line: str, number: int, kind: type[RecordT], path: Path) -> RecordT:
    """Returns line `number` (from 1 on) of a JSON-lines file as a `kind`; `path` is for errors."""
    return as_record(_decode(line, path, number), kind, path, f"line {number}")


def as_record(value: Any, kind: type[RecordT], path: Path, place: str = "") -> RecordT:
    """Returns the JSON `value` as a `kind`.

    Raises InputError that names the file `path`, the `place` in it and the first wrong key.
    """
    # through JSON text, because pydantic's strict mode takes lists for tuples from JSON alone
    try:
        return kind.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        parts = [*([place] if place else []), *(str(part) for part in first["loc"])]
        where = ".".join(parts) or "(whole)"
        raise InputError("file", path, f"{where}: {first['msg']}") from error


def _decode(text: str, path: Path, line: int | None) -> Any:
    """Returns the value of a JSON text; raises InputError that names the line."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {line or getattr(error, 'lineno', '?')}"
        raise InputError(
            "file", path, f"not valid JSON at {where}: {getattr(error, 'msg', error)}"
        ) from error
