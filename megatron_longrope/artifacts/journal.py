"""The append-only record of a search: one line of JSON per finished evaluation, on disk before the
search goes on.

Line 1 is a header that fixes the search (searcher, seed, settings, space, seeds) and what it is
judged by (a fingerprint of the objective). Every line ends with its own CRC-32, so that damage
inside a number does not go unnoticed. A last line without its end is what a kill leaves behind: it
is cut off on reopening. All other damage is refused.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Protocol

from pydantic import ConfigDict, Field

from megatron_longrope.artifacts.evaluations import Candidate, Evaluation, Provenance
from megatron_longrope.artifacts.identity import check_same
from megatron_longrope.artifacts.records import FileRecord, Tokens, as_record
from megatron_longrope.atomic import replacing
from megatron_longrope.errors import InputError, LongRopeError

FORMAT = "longrope-search-journal"
VERSION = 1


@dataclass(frozen=True)
class JournalEntry:
    """One finished evaluation; `seconds` is its share of the wall time of its batch, `cost_tokens`
    what it scored."""

    index: int
    candidate: Candidate
    provenance: Provenance
    evaluation: Evaluation
    seconds: float
    cost_tokens: int

    @property
    def has_gradient(self) -> bool:
        """Whether a backward pass went through the model too."""
        return self.evaluation.gradient is not None

    @property
    def stopped_early(self) -> bool:
        """Whether scoring stopped before the last document because the candidate was hopeless."""
        return not self.evaluation.completed and self.evaluation.sample is None

    def to_json(self) -> dict[str, Any]:
        """Returns the flat JSON values of one line."""
        return {
            "index": self.index,
            "generation": self.provenance.generation,
            "origin": self.provenance.origin,
            "candidate": self.candidate.to_json(),
            **self.evaluation.to_json(),
            "seconds": self.seconds,
            "cost_tokens": self.cost_tokens,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JournalEntry:
        """Returns the entry that `to_json` wrote."""
        return cls(
            int(data["index"]),
            Candidate.from_json(data["candidate"]),
            Provenance(int(data["generation"]), str(data["origin"])),
            Evaluation.from_json(data),
            float(data["seconds"]),
            int(data["cost_tokens"]),
        )


class JournalObjective(FileRecord):
    """What the candidates of a model's search were scored on: documents of these `lengths` in
    tokens, and whatever else fixes an evaluation."""

    model_config = ConfigDict(extra="allow")

    target_length: Tokens
    lengths: Annotated[tuple[Tokens, ...], Field(min_length=1)]
    weights: tuple[float, ...] = (1.0,)
    """One per part of the loss."""

    @property
    def is_perplexity(self) -> bool:
        """Whether exp(loss) is a perplexity: of a mixture it is a score only."""
        return len(self.weights) == 1

    @property
    def measure(self) -> str:
        """What exp(loss) is called."""
        return "perplexity" if self.is_perplexity else "score, exp(loss)"

    @property
    def comparable(self) -> dict[str, Any]:
        """What must be the same for perplexities of two journals to be compared; stopping early
        changes none."""
        return self.model_dump(exclude={"early_stopping", "ladder"}, exclude_unset=True)


class JournalHeader(FileRecord):
    """Line 1 of a journal of a model's search: who proposed the candidates, and what they were
    scored on."""

    searcher: str
    objective: JournalObjective


@dataclass(frozen=True)
class SearchJournal:
    """A whole journal of a model's search: its header, and the evaluations in order."""

    header: JournalHeader
    entries: list[JournalEntry]


class Record(Protocol):
    """What a search needs of a journal: what was there when it was opened, and a place for more."""

    @property
    def entries(self) -> Sequence[JournalEntry]:
        """Finished evaluations, in order."""

    def append(self, entry: JournalEntry) -> None:
        """Keeps one more finished evaluation."""


class MemoryJournal:
    """A record without a file: for ranks that do not write, which start from the entries the
    writing rank read."""

    def __init__(self, entries: Sequence[JournalEntry] = ()) -> None:
        self._entries = list(entries)

    @property
    def entries(self) -> Sequence[JournalEntry]:
        """Finished evaluations, in order."""
        return tuple(self._entries)

    def append(self, entry: JournalEntry) -> None:
        """Keeps `entry` in memory."""
        self._entries.append(entry)


class Journal:
    """A journal file open for appending, by one process. `Journal.open` makes one; use it in a
    `with` statement."""

    def __init__(self, path: Path, descriptor: int, entries: list[JournalEntry], size: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._entries = entries
        self._size = size

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any], objective: Any) -> Journal:
        """Opens the journal at `path`, or creates it, for the search of this identity judged by
        this objective.

        `identity` is a searcher's `identity()`, `objective` JSON values that change whenever
        evaluations would. Raises InputError where the file is another search's (naming the first
        key that differs) or damaged (naming the line).
        """
        header = _plain({"format": FORMAT, "version": VERSION, **identity, "objective": objective})
        if not path.exists():
            with replacing(path) as partial:  # at no moment is there a file without a whole header
                partial.write_bytes(_line(header))
        stored, entries, size = _read(path)
        check_same(stored, header, f"journal {path}")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
        return cls(path, descriptor, entries, size)

    @property
    def entries(self) -> Sequence[JournalEntry]:
        """Finished evaluations, in order."""
        return tuple(self._entries)

    def append(self, entry: JournalEntry) -> None:
        """Writes one line and waits until it is on disk; raises LongRopeError where another process
        wrote too."""
        if entry.index != len(self._entries):
            raise LongRopeError(
                f"journal {self.path}: entry {entry.index} cannot follow {len(self._entries)} "
                "entries"
            )
        if os.fstat(self._descriptor).st_size != self._size:
            raise LongRopeError(
                f"journal {self.path}: another process is writing to it; end one of the two"
            )
        line = _line(entry.to_json())
        _write_all(self._descriptor, line)
        os.fsync(self._descriptor)
        self._size += len(line)
        self._entries.append(entry)

    def close(self) -> None:
        """Closes the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_journal(path: Path) -> tuple[dict[str, Any], list[JournalEntry]]:
    """Returns header and whole entries of the journal at `path` and leaves the file as it is;
    raises InputError."""
    header, entries, _ = _read(path)
    return header, entries


def read_search_journal(path: Path) -> SearchJournal:
    """Returns the journal of a model's search at `path`, whose header must say what it was scored
    on; leaves the file as it is and raises InputError."""
    header, entries, _ = _read(path)
    return SearchJournal(as_record(header, JournalHeader, path, "line 1"), entries)


def _read(path: Path) -> tuple[dict[str, Any], list[JournalEntry], int]:
    """Header, entries and the bytes they take; what follows the last line end is not counted."""
    if not path.is_file():
        raise InputError("journal", path, "no such file")
    *lines, _ = path.read_bytes().split(b"\n")
    if not lines:
        raise InputError("journal", path, "line 1 is not the header of a search journal")
    header = _parse(lines[0], path, 1)
    if header.get("format") != FORMAT:
        raise InputError("journal", path, "line 1 is not the header of a search journal")
    entries = [
        _entry(_parse(line, path, number), path, number)
        for number, line in enumerate(lines[1:], start=2)
    ]
    return header, entries, sum(len(line) + 1 for line in lines)


def _entry(data: Mapping[str, Any], path: Path, number: int) -> JournalEntry:
    try:
        entry = JournalEntry.from_json(data)
    except (KeyError, TypeError, ValueError, OverflowError, InputError) as error:
        raise InputError("journal", path, f"line {number} is no evaluation: {error!r}") from error
    if entry.index != number - 2:
        raise InputError(
            "journal", path, f"line {number} holds evaluation {entry.index}, {number - 2} is due"
        )
    return entry


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        data = json.loads(line)
        crc = data.pop("crc")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            "journal", path, f"line {number} is damaged: not a JSON object with a crc"
        ) from error
    if crc != _crc(data):
        raise InputError("journal", path, f"line {number} is damaged: its crc does not match")
    return dict(data)


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps({**data, "crc": _crc(data)}, allow_nan=False).encode() + b"\n"


def _crc(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` as it will be read back (tuples become lists)."""
    return dict(json.loads(json.dumps(data, allow_nan=False)))


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
