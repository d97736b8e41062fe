"""Everything that a report needs of a run directory; what is not there is left empty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron_longrope.artifacts.factor_file import read_factors
from megatron_longrope.artifacts.factors import FactorSet
from megatron_longrope.artifacts.journal import SearchJournal, read_search_journal
from megatron_longrope.artifacts.metrics import MetricsRow, read_metrics
from megatron_longrope.artifacts.records import read_text
from megatron_longrope.artifacts.results import EvaluationRows, read_evaluations
from megatron_longrope.artifacts.summaries import RunSummary, SearchSummary, read_summary
from megatron_longrope.config import parse_yaml
from megatron_longrope.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory, or of a directory that `longrope search` left.

    A run has a `result`, a search has `search` instead.
    """

    name: str
    config_text: str | None
    config: dict[str, Any]
    result: RunSummary | None
    search: SearchSummary | None
    factors: dict[str, FactorSet]
    journals: dict[str, SearchJournal]
    metrics: list[MetricsRow]
    evaluations: EvaluationRows

    @property
    def original_length(self) -> int | None:
        """The pretrained window in tokens, from the result or else from the factors."""
        if self.result and self.result.model and self.result.model.original_length:
            return self.result.model.original_length
        return next((factors.geometry.original_length for factors in self.factors.values()), None)

    @property
    def target_length(self) -> int | None:
        """The target length in tokens, from the result or else the longest of the factors."""
        if self.search:
            return self.search.target_length
        if self.result and self.result.target_length:
            return self.result.target_length
        targets = [
            entry.factors.target_length for file in self.factors.values() for entry in file.ranges
        ]
        return max(targets, default=None)


def read_run(run_dir: Path) -> RunFiles:
    """Returns the contents of `run_dir`; raises InputError for no folder or a damaged file."""
    if not run_dir.is_dir():
        raise InputError("run directory", run_dir, "no such folder")
    config_path, result_path = run_dir / "config.yaml", run_dir / "result.json"
    config_text = read_text(config_path) if config_path.is_file() else None
    result = read_summary(result_path) if result_path.is_file() else None
    return RunFiles(
        name=run_dir.resolve().name,
        config_text=config_text,
        config=parse_yaml(config_text, str(config_path)) if config_text is not None else {},
        result=result if isinstance(result, RunSummary) else None,
        search=result if isinstance(result, SearchSummary) else None,
        factors={
            path.stem: read_factors(path) for path in sorted((run_dir / "factors").glob("*.json"))
        },
        journals={
            path.stem: read_search_journal(path)
            for path in _single_or_folder(run_dir, "journal", "journals")
        },
        metrics=_concatenated(_single_or_folder(run_dir, "metrics", "metrics"), read_metrics),
        evaluations=read_evaluations(run_dir / "evals"),
    )


def _single_or_folder(run_dir: Path, file: str, folder: str) -> list[Path]:
    """Returns `<file>.jsonl`, where it exists, and every .jsonl file in `folder`."""
    single = run_dir / f"{file}.jsonl"
    return [*([single] if single.is_file() else []), *sorted((run_dir / folder).glob("*.jsonl"))]


def _concatenated(paths: list[Path], read: Callable[[Path], list[T]]) -> list[T]:
    return [item for path in paths for item in read(path)]
