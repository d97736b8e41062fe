"""The journal of a search: one line of JSON per evaluation, on disk before the search goes on.

Line 1 is a header that determines the search (searcher, seed, settings, space, seeds) and
identifies its objective. Every line ends with its own CRC-32, so that damage inside a number is
noticed too. A process killed while writing leaves a last line without its newline, which is cut off
when the file is opened again. All other damage is refused.
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
    """One finished evaluation as a line of the journal."""

    index: int
    """Number of the evaluation in the search, from 0 on."""
    candidate: Candidate
    provenance: Provenance
    """The round and the step of the search that the candidate came from."""
    evaluation: Evaluation
    seconds: float
    """Wall time since the evaluation before it, or since the start of its batch."""
    cost_tokens: int
    """Tokens that went through the model."""

    @property
    def has_gradient(self) -> bool:
        """Whether the evaluation took a backward pass too."""
        return self.evaluation.gradient is not None

    @property
    def stopped_early(self) -> bool:
        """Whether scoring stopped before the last document because the candidate was hopeless."""
        return not self.evaluation.completed and self.evaluation.sample is None

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON values of one line, without its checksum."""
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
    """What the candidates of a search were scored on: documents of these `lengths` in tokens.

    Further keys, which depend on the objective, are kept as they are.
    """

    model_config = ConfigDict(extra="allow")

    target_length: Tokens
    lengths: Annotated[tuple[Tokens, ...], Field(min_length=1)]
    weights: tuple[float, ...] = (1.0,)
    """Weights of the parts of the loss."""

    @property
    def is_perplexity(self) -> bool:
        """Whether exp(loss) is a perplexity, which it is not where several parts are mixed."""
        return len(self.weights) == 1

    @property
    def measure(self) -> str:
        """The name of exp(loss) in plots and captions."""
        return "perplexity" if self.is_perplexity else "score, exp(loss)"

    @property
    def comparable(self) -> dict[str, Any]:
        """The values that must agree before perplexities of two journals are compared.

        Settings of early stopping are left out: they change no perplexity of a completed candidate.
        """
        return self.model_dump(exclude={"early_stopping", "ladder"}, exclude_unset=True)


class JournalHeader(FileRecord):
    """Line 1 of the journal of a model's search: its searcher and its objective."""

    searcher: str
    objective: JournalObjective


@dataclass(frozen=True)
class SearchJournal:
    """A whole journal of a model's search: its header, and the evaluations in order."""

    header: JournalHeader
    entries: list[JournalEntry]


class Record(Protocol):
    """The record of a search: its finished evaluations, and a way to add one."""

    @property
    def entries(self) -> Sequence[JournalEntry]:
        """All finished evaluations in order, those of earlier runs included."""

    def append(self, entry: JournalEntry) -> None:
        """Adds a finished evaluation."""


class MemoryJournal:
    """A record in memory alone.

    Ranks that do not write the journal use it: they start from the entries that rank 0 has read.
    """

    def __init__(self, entries: Sequence[JournalEntry] = ()) -> None:
        self._entries = list(entries)

    @property
    def entries(self) -> Sequence[JournalEntry]:
        """All finished evaluations in order."""
        return tuple(self._entries)

    def append(self, entry: JournalEntry) -> None:
        """Adds a finished evaluation."""
        self._entries.append(entry)


class Journal:
    """A journal file that one process has open for appending.

    >>> with Journal.open(folder / "search.jsonl", {"searcher": "random"}, "a formula") as journal:
    ...     evaluation = Evaluation(nll_sums=(2.0,), token_counts=(1,))
    ...     candidate, provenance = Candidate((1.0, 4.0)), Provenance(0, "seed")
    ...     journal.append(JournalEntry(0, candidate, provenance, evaluation, 0.1, 1))
    >>> header, entries = read_journal(folder / "search.jsonl")
    >>> header["searcher"], entries[0].candidate.rescale
    ('random', (1.0, 4.0))
    """

    def __init__(self, path: Path, descriptor: int, entries: list[JournalEntry], size: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._entries = entries
        self._size = size

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any], objective: Any) -> Journal:
        """Opens the journal at `path` for appending, or creates it.

        `identity` is a searcher's `identity()`. `objective` are JSON values that identify the
        objective: they differ wherever evaluations would. Raises InputError where the file is that
        of another search, with the first key that differs, or damaged, with the number of the line.
        """
        header = _plain({"format": FORMAT, "version": VERSION, **identity, "objective": objective})
        if not path.exists():
            # atomically, so that there never is a journal without a whole header
            with replacing(path) as partial:
                partial.write_bytes(_line(header))
        stored, entries, size = _read(path)
        check_same(stored, header, f"journal {path}")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(descriptor, size)  # cuts off a last line without its newline
        os.fsync(descriptor)
        return cls(path, descriptor, entries, size)

    @property
    def entries(self) -> Sequence[JournalEntry]:
        """All finished evaluations in order, those of earlier runs included."""
        return tuple(self._entries)

    def append(self, entry: JournalEntry) -> None:
        """Writes one line and waits until it is on disk.

        Raises LongRopeError for an entry out of order, and where another process has written to the
        file since.
        """
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
        """Closes the file; closing it again does nothing."""
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
    """Returns the header and the whole entries of the journal at `path`; raises InputError.

    The file stays as it is, a last line without its newline included.
    """
    header, entries, _ = _read(path)
    return header, entries


def read_search_journal(path: Path) -> SearchJournal:
    """Returns the journal of a model's search at `path` with a validated header.

    Raises InputError as `read_journal` does, and where the header does not say what candidates were
    scored on. The file stays as it is.
    """
    header, entries, _ = _read(path)
    return SearchJournal(as_record(header, JournalHeader, path, "line 1"), entries)


def _read(path: Path) -> tuple[dict[str, Any], list[JournalEntry], int]:
    """Returns header, entries, and their size in bytes up to and with the last newline."""
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
    """Returns the entry in line `number`; raises InputError for any but the one that is due."""
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
    """Returns the JSON object in a line without its checksum; raises InputError for a wrong one."""
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
    """Returns the CRC-32 of the values, in hexadecimal; the order of keys does not matter."""
    text = json.dumps(data, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `data` as it will be read back: tuples become lists."""
    return dict(json.loads(json.dumps(data, allow_nan=False)))


def _write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data`: os.write may write a part of it, such as on a disk that runs full."""
    while data:
        data = data[os.write(descriptor, data) :]
