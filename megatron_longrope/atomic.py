"""Atomic writing of files: they are written beside their place, synced to disk, then renamed.

A reader, or a run after a power failure, sees the old file or the new one, never a part. Everything
that replaces one file goes through here. Three things are written in other ways: tensor files of a
conversion, which are streamed; folders, which are renamed as a whole; and journals, which are
appended to.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; the file written there then replaces `path`.

    The file is on disk before it is renamed, and the new name is on disk before this returns.
    Where the body fails, the partial file is removed and `path` stays as it was. Missing folders
    are made.

    >>> with replacing(folder / "notes.txt") as partial:
    ...     written = partial.write_text("whole or not at all")
    >>> (folder / "notes.txt").read_text()
    'whole or not at all'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # the folder holds the name


def write_text_file(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all; raises OSError where it cannot."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json_file(path: Path, values: Mapping[str, Any]) -> None:
    """Writes `values` to `path` as strict JSON, as `json_text` spells it, whole or not at all."""
    write_text_file(path, json_text(values) + "\n")


def json_text(values: object) -> str:
    """Returns `values` as indented strict JSON.

    JSON has no numbers that are not finite: they become null. Paths become text, NumPy scalars and
    arrays become plain numbers; anything else that JSON cannot hold raises TypeError. Finite floats
    are read back bit for bit.

    >>> json_text([0.1, math.nan])
    '[\\n 0.1,\\n null\\n]'
    """
    return json.dumps(_strict(values), indent=1, allow_nan=False)


def finite_or_none(value: float) -> float | None:
    """Returns `value`, or None where it is NaN or infinite, as it will stand in a JSON file."""
    return value if math.isfinite(value) else None


def _strict(value: Any) -> Any:
    """Returns `value` made of what strict JSON can hold, at every depth."""
    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a NumPy array or scalar, recognised without importing NumPy
        return _strict(value.tolist())
    return value


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
