"""`result.json`, of a run and of one search: what was found, in numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from megatron_longrope.artifacts.cost import SearchCost
from megatron_longrope.artifacts.evaluations import PartLoss
from megatron_longrope.artifacts.records import Count, FileRecord, Tokens, read_record
from megatron_longrope.artifacts.rows import AttentionFactorSource
from megatron_longrope.artifacts.stages import StageRecord


class ModelFacts(FileRecord):
    """The model of a run; everything but its name may be missing."""

    name: str
    parameters: Count | None = None
    original_length: Tokens | None = None
    num_layers: Tokens | None = None
    hidden_size: Tokens | None = None
    num_heads: Tokens | None = None
    head_dim: Tokens | None = None


class Check(FileRecord):
    """A question any extension should answer: what was measured, the bound a good one meets, and
    whether this one did. None stands for a number that was not finite."""

    name: str
    text: str
    value: float | str | None
    bound: float | str | None
    met: bool

    @classmethod
    def of(cls, name: str, text: str, value: float, bound: float, *, met: bool) -> Check:
        """Returns the check of two numbers, rounded to four decimals for a reader."""
        shown = [round(number, 4) if math.isfinite(number) else None for number in (value, bound)]
        return cls(name=name, text=text, value=shown[0], bound=shown[1], met=met)


class HeldOut(FileRecord):
    """The documents that no search and no training saw."""

    sha256: str
    documents: tuple[str, ...] = ()


class RunSummary(FileRecord):
    """`result.json` of a run. `checkpoint` is a folder of the run directory."""

    format: Literal[1]
    checkpoint: str | None = None
    model: ModelFacts | None = None
    target_length: Tokens | None = None
    stages: tuple[StageRecord, ...] = ()
    checks: tuple[Check, ...] = ()
    held_out: HeldOut | None = None
    environment: dict[str, str | int | float | None] = Field(default_factory=dict)
    summary: dict[str, float | str | None] = Field(default_factory=dict)
    """The value of each check by its text."""


class BaselineMargin(FileRecord):
    """A baseline on a search's documents; `ratio`: its perplexity over the best one's, `low` to
    `high` that ratio's 95 % interval. None stands for a number that was not finite.

    Where the loss is a mixture its exp is a `score`, no perplexity, and `parts` has each part's
    own number; the ratio is then of scores.
    """

    method: str
    attention_factor: Annotated[
        AttentionFactorSource,
        Field(validation_alias=AliasChoices("attention_factor", "temperature")),
    ]
    """Files of before call it `temperature`."""
    perplexity: float | None
    ratio: float | None
    low: float | None
    high: float | None
    score: float | None = None
    parts: tuple[PartLoss, ...] = ()

    @property
    def value(self) -> float | None:
        """The perplexity, or the score of a mixture."""
        return self.perplexity if self.score is None else self.score


class HeldOutMargins(FileRecord):
    """What a search found, on documents it did not search on: text of the searched length alone."""

    sha256: str
    documents: tuple[str, ...]
    perplexity: float | None
    baselines: tuple[BaselineMargin, ...]
    cost: SearchCost


class SearchSummary(SearchCost):
    """`result.json` of `longrope search`: what the search that ran last found and what it cost.

    What has a default is missing in results of older versions.
    """

    perplexity: float | None = None
    """None where the loss is a mixture."""
    score: float | None = None
    """exp(loss) of a mixture."""
    parts: tuple[PartLoss, ...] = ()
    """Of a mixture, each part alone."""
    stopped_early: Count
    forward_equivalents: float | None = None
    """The operations it took, over those of one evaluation of all documents."""
    recovered: Count = 0
    """Evaluations taken from the journal of an interrupted run."""
    target_length: Tokens
    journal: str | None = None
    """Its journal's name; without one it is that of the default searcher."""
    baselines: tuple[BaselineMargin, ...]
    baselines_cost: SearchCost | None = None
    """Beyond the search's own evaluations."""
    factors: str | None = None
    """The file of the best factors."""
    held_out: HeldOutMargins | None = None
    """Where documents were held out."""

    @property
    def value(self) -> float:
        """The perplexity, or the score of a mixture; NaN where neither is there."""
        return next((x for x in (self.perplexity, self.score) if x is not None), math.nan)

    @property
    def journal_name(self) -> str:
        """Name of its journal: `journals/NAME.jsonl`."""
        return self.journal or f"search-{self.target_length}"

    @property
    def best_baseline(self) -> BaselineMargin | None:
        """The baseline of lowest perplexity, or score; None where none has one."""
        finite = [(row.value, row) for row in self.baselines if row.value is not None]
        return min(finite, key=lambda item: item[0])[1] if finite else None


class _AnySummary(FileRecord):
    """What one asks a `result.json` of either kind: a search's has baselines."""

    baselines: Any = None
    checkpoint: str | None = None


def read_summary(path: Path) -> RunSummary | SearchSummary:
    """Returns a `result.json`, of a run or of one search; raises InputError where it is damaged."""
    is_search = read_record(path, _AnySummary).baselines is not None
    return read_record(path, SearchSummary) if is_search else read_record(path, RunSummary)


def named_checkpoint(path: Path) -> str | None:
    """Returns the `checkpoint` that a `result.json` names, None where it names none; raises
    InputError where it is damaged."""
    return read_record(path, _AnySummary).checkpoint
