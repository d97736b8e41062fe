"""Everything a report needs of a run directory, read once; what is not there is left empty."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron_longrope.artifacts.results import EvaluationRows, read_evaluations
from megatron_longrope.config import parse_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.report.files import (
    as_record,
    read_json_lines,
    read_record,
    read_text,
)
from megatron_longrope.report.records import (
    FactorFile,
    JournalHeader,
    MetricsRow,
    ResultKind,
    RunResult,
    SearchEntry,
    SearchResult,
)

T = TypeVar("T")
JOURNAL_FORMAT = "longrope-search-journal"


@dataclass(frozen=True)
class SearchJournal:
    """A search's evaluations in order, and the header that says whose and of what they are."""

    header: JournalHeader
    entries: list[SearchEntry]


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory, or of what `longrope search` leaves: that has `search`
    instead of `result`."""

    name: str
    config_text: str | None
    config: dict[str, Any]
    result: RunResult | None
    search: SearchResult | None
    factors: dict[str, FactorFile]
    journals: dict[str, SearchJournal]
    metrics: list[MetricsRow]
    evaluations: EvaluationRows

    @property
    def original_length(self) -> int | None:
        """The model's own window in tokens, from the result or else from the factors."""
        if self.result and self.result.model and self.result.model.original_length:
            return self.result.model.original_length
        return next(
            (file.ranges[0].factors.original_length for file in self.factors.values()), None
        )

    @property
    def target_length(self) -> int | None:
        """The length in tokens the run extends to, from the result or else the longest of the
        factors."""
        if self.search:
            return self.search.target_length
        if self.result and self.result.target_length:
            return self.result.target_length
        targets = [
            entry.factors.target_length for file in self.factors.values() for entry in file.ranges
        ]
        return max(targets, default=None)


def read_run(run_dir: Path) -> RunFiles:
    """Returns what is in `run_dir`; raises InputError that names the first damaged file, or that it
    is no folder."""
    if not run_dir.is_dir():
        raise InputError("run directory", run_dir, "no such folder")
    config_path, result_path = run_dir / "config.yaml", run_dir / "result.json"
    config_text = read_text(config_path) if config_path.is_file() else None
    result = _read_result(result_path) if result_path.is_file() else None
    return RunFiles(
        name=run_dir.resolve().name,
        config_text=config_text,
        config=parse_yaml(config_text, str(config_path)) if config_text is not None else {},
        result=result if isinstance(result, RunResult) else None,
        search=result if isinstance(result, SearchResult) else None,
        factors={
            path.stem: read_record(path, FactorFile)
            for path in sorted((run_dir / "factors").glob("*.json"))
        },
        journals={
            path.stem: read_journal(path)
            for path in _single_or_folder(run_dir, "journal", "journals")
        },
        metrics=_concatenated(_single_or_folder(run_dir, "metrics", "metrics"), _read_metrics),
        evaluations=read_evaluations(run_dir / "evals"),
    )


def _read_result(path: Path) -> RunResult | SearchResult:
    is_search = read_record(path, ResultKind).baselines is not None
    return read_record(path, SearchResult) if is_search else read_record(path, RunResult)


def read_journal(path: Path) -> SearchJournal:
    """Returns a search journal; every line must match its checksum."""
    lines = read_json_lines(path)
    for number, line in enumerate(lines, start=1):
        text = json.dumps(
            {key: value for key, value in line.items() if key != "crc"}, sort_keys=True
        )
        if line.get("crc") != f"{zlib.crc32(text.encode()):08x}":
            raise InputError("file", path, f"line {number} is damaged: its crc does not match")
    if not lines or lines[0].get("format") != JOURNAL_FORMAT:
        raise InputError("file", path, "line 1 is not the header of a search journal")
    entries = [
        as_record(line, SearchEntry, path, f"line {number}")
        for number, line in enumerate(lines[1:], start=2)
    ]
    return SearchJournal(as_record(lines[0], JournalHeader, path, "line 1"), entries)


def _read_metrics(path: Path) -> list[MetricsRow]:
    lines = enumerate(read_json_lines(path), start=1)
    return [as_record(line, MetricsRow, path, f"line {number}") for number, line in lines]


def _single_or_folder(run_dir: Path, file: str, folder: str) -> list[Path]:
    """`<file>.jsonl` where it exists, and every .jsonl file of `folder`."""
    single = run_dir / f"{file}.jsonl"
    return [*([single] if single.is_file() else []), *sorted((run_dir / folder).glob("*.jsonl"))]


def _concatenated(paths: list[Path], read: Callable[[Path], list[T]]) -> list[T]:
    return [item for path in paths for item in read(path)]
