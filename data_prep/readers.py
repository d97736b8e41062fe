"""Reads text documents: one from each text file, or one from each line of a JSON Lines file."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.documents import TextDocument
from megatron_longrope.errors import InputError


def read_text_files(paths: Iterable[str | Path], field: str = "--text") -> Iterator[TextDocument]:
    """Yields each file as one document named by its path.

    Raises InputError, which names `field`, where a file is absent or not UTF-8.
    """
    for path in paths:
        yield TextDocument(str(path), _read_utf8(Path(path), field))


def find_text_files(paths: Iterable[str | Path], field: str = "--text") -> list[str]:
    """Returns the files that `paths` name: files, folders with all below them, patterns such as
    `books/*.txt`.

    Hidden files and folders are left out of a folder, and empty files of folders and patterns. Each
    file is there once, in the order given, within a folder or pattern by name. Raises InputError,
    which names `field`, for a path that names no file.
    """
    found: dict[str, None] = {}
    for path in paths:
        files = _files_of(Path(path))
        if not files:
            raise InputError(field, path, "no such file, and no folder or pattern with files")
        found.update(dict.fromkeys(str(file) for file in files))
    return list(found)


def read_jsonl(
    path: str | Path, text_field: str = "text", name_field: str = "id"
) -> Iterator[TextDocument]:
    """Yields the text of each line of a JSON Lines file as one document.

    A document is named by the line's `name_field`, or else by the file's name and line number.
    Raises InputError with the line's number where a line is not a JSON object with that field.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError("--jsonl", path, "no such file")
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _document(line, f"{file.name}:{number}", text_field, name_field)


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        below = (file for file in path.rglob("*") if file.is_file())
        return sorted(
            file
            for file in below
            if file.stat().st_size
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
    if path.is_file():
        return [path]
    matches = (Path(match) for match in glob.glob(str(path), recursive=True))
    return sorted(match for match in matches if match.is_file() and match.stat().st_size)


def _document(line: bytes, place: str, text_field: str, name_field: str) -> TextDocument:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            "--jsonl", place, f"not UTF-8 at byte {error.start} of the line"
        ) from error
    except ValueError as error:
        raise InputError("--jsonl", place, f"not valid JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get(text_field), str):
        raise InputError(
            "--jsonl", place, f'every line is an object with a string in "{text_field}"'
        )
    text = values[text_field]
    if not _encodable(text):
        raise InputError(
            "--jsonl", place, "its text holds half a surrogate pair, which no UTF-8 text can"
        )
    return TextDocument(str(values.get(name_field, place)), text)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _read_utf8(path: Path, field: str) -> str:
    if not path.is_file():
        raise InputError(field, path, "no such file")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            field, path, f"not UTF-8: byte 0x{content[error.start]:02x} at {error.start}"
        ) from error
