"""Reading JSON and JSON-lines files into records; whatever is damaged becomes one InputError that
names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from megatron_longrope.errors import InputError
from megatron_longrope.report.records import Record

RecordT = TypeVar("RecordT", bound=Record)


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of `path`; raises InputError when it cannot be read as such."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("file", path, f"cannot be read as UTF-8 text: {error}") from error


def read_record(path: Path, kind: type[RecordT]) -> RecordT:
    """Returns the JSON object in `path` as a `kind`."""
    return as_record(_decode(read_text(path), path, None), kind, path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file, one a line.

    A last line without its newline is a write cut short by a kill and is left out; any other bad
    line is an error.
    """
    lines = read_text(path).split("\n")
    lines.pop()  # what follows the last newline: nothing, or a torn write
    objects = []
    for number, line in enumerate(lines, start=1):
        value = _decode(line, path, number)
        if not isinstance(value, dict):
            raise InputError("file", path, f"line {number} is not a JSON object")
        objects.append(value)
    return objects


def as_record(value: Any, kind: type[RecordT], path: Path, place: str = "") -> RecordT:
    """Returns `value` as a `kind`; the error names the file, the place in it and the first wrong
    key."""
    try:
        return kind.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = (
            ".".join([*([place] if place else []), *(str(part) for part in first["loc"])])
            or "(whole)"
        )
        raise InputError("file", path, f"{where}: {first['msg']}") from error


def _decode(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {line or getattr(error, 'lineno', '?')}"
        raise InputError(
            "file", path, f"not valid JSON at {where}: {getattr(error, 'msg', error)}"
        ) from error
