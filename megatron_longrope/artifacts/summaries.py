"""The schemas of `result.json`, which a run and a single search leave."""

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
    """The model of a run; results of older versions have its name alone."""

    name: str
    parameters: Count | None = None
    original_length: Tokens | None = None
    """The pretrained window in tokens, which λ counts from."""
    window: Tokens | None = None
    """Longest input in tokens that the model was made for as it arrived, which is more than
    `original_length` where it arrived scaled. None in older files."""
    scaling: str | None = None
    """The scaling that the model arrived with, in a few words; None where it was unscaled."""
    num_layers: Tokens | None = None
    hidden_size: Tokens | None = None
    num_heads: Tokens | None = None
    head_dim: Tokens | None = None


class Check(FileRecord):
    """One of the checks at the end of a run: a question that every extension should answer.

    None stands for a number that was not finite.
    """

    name: str
    text: str
    """The question, as the report shows it."""
    value: float | str | None
    """The value measured."""
    bound: float | str | None
    """The bound that a good extension meets."""
    met: bool
    """Whether this extension meets it."""

    @classmethod
    def of(cls, name: str, text: str, value: float, bound: float, *, met: bool) -> Check:
        """Returns the check of two numbers, rounded to four decimals for a reader.

        Args:
            name: What is checked, such as `last-quarter`.
            text: The question, as the report shows it.
            value: The value measured.
            bound: The bound that a good extension meets.
            met: Whether this extension meets it.
        """
        shown = [round(number, 4) if math.isfinite(number) else None for number in (value, bound)]
        return cls(name=name, text=text, value=shown[0], bound=shown[1], met=met)


class HeldOut(FileRecord):
    """The documents that no search and no training saw."""

    sha256: str
    documents: tuple[str, ...] = ()


class ExportSummary(FileRecord):
    """The exported folders of a run, and what they could not carry."""

    folder: str
    """The Hugging Face folder with two factor sets, relative to the run directory."""
    static_folder: str | None = None
    """The folder with one factor set, relative to the run directory."""
    left_behind: tuple[str, ...] = ()
    """In words, which inputs get other factors there than in the Megatron checkpoint."""
    compared_length: Tokens | None = None
    """Tokens up to which losses of transformers and of our model were compared; None: they were
    not."""
    largest_difference: float | None = None
    """Largest difference between a token's loss in transformers and in our model, in nats; None
    where it was not finite, or nothing was compared."""


class RunSummary(FileRecord):
    """The `result.json` of a run."""

    format: Literal[1]
    checkpoint: str | None = None
    """Folder of the final checkpoint, relative to the run directory."""
    model: ModelFacts | None = None
    target_length: Tokens | None = None
    stages: tuple[StageRecord, ...] = ()
    checks: tuple[Check, ...] = ()
    held_out: HeldOut | None = None
    export: ExportSummary | None = None
    """The exported folders; None where there is no export, and in files of older versions."""
    environment: dict[str, str | int | float | None] = Field(default_factory=dict)
    summary: dict[str, float | str | None] = Field(default_factory=dict)
    """The values of the checks by their texts."""


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
    """The baseline's perplexity over that of the best candidate."""
    low: float | None
    """Lower end of the ratio's 95 % interval."""
    high: float | None
    """Upper end of the ratio's 95 % interval."""
    score: float | None = None
    """exp(loss) where several parts are mixed; the ratio is then of scores."""
    parts: tuple[PartLoss, ...] = ()
    """The loss of each part where parts are mixed."""

    @property
    def value(self) -> float | None:
        """The perplexity, or the score of a mixture."""
        return self.perplexity if self.score is None else self.score


class HeldOutMargins(FileRecord):
    """What a search found, measured on documents that it did not search on."""

    sha256: str
    """Digest of the documents' tokens."""
    documents: tuple[str, ...]
    """Names of the documents."""
    perplexity: float | None
    """Perplexity of the best factors on the first tokens of these documents."""
    baselines: tuple[BaselineMargin, ...]
    cost: SearchCost
    """Cost of scoring the best factors and the baselines there."""


class SearchSummary(SearchCost):
    """The `result.json` of `longrope search`: what the latest search found and what it cost.

    Fields with a default are missing in results of older versions.
    """

    perplexity: float | None = None
    """Perplexity of the best candidate on the search's documents; None where parts are mixed."""
    score: float | None = None
    """exp(loss) of the best candidate where parts are mixed."""
    parts: tuple[PartLoss, ...] = ()
    """The loss of each part where parts are mixed."""
    stopped_early: Count
    """Number of candidates whose scoring was stopped early."""
    forward_equivalents: float | None = None
    """The operations of the search over those of one forward pass over all documents."""
    recovered: Count = 0
    """Number of evaluations taken from the journal of an interrupted run."""
    target_length: Tokens
    journal: str | None = None
    """Name of the search's journal; None means the one of the default searcher, `search-LENGTH`."""
    baselines: tuple[BaselineMargin, ...]
    baselines_cost: SearchCost | None = None
    """Cost of evaluating the baselines, which `tokens` and the other costs do not include."""
    factors: str | None = None
    """Path of the file with the best factors."""
    held_out: HeldOutMargins | None = None
    """The margins on held-out documents; None where there were none."""

    @property
    def value(self) -> float:
        """The perplexity, or the score of a mixture; NaN where neither is there."""
        return next((x for x in (self.perplexity, self.score) if x is not None), math.nan)

    @property
    def journal_name(self) -> str:
        """Name of the search's journal, NAME in `journals/NAME.jsonl`."""
        return self.journal or f"search-{self.target_length}"

    @property
    def best_baseline(self) -> BaselineMargin | None:
        """The baseline of lowest perplexity or score; None where no baseline has a finite one."""
        finite = [(row.value, row) for row in self.baselines if row.value is not None]
        return min(finite, key=lambda item: item[0])[1] if finite else None


class _AnySummary(FileRecord):
    """The fields that tell a `result.json` of a search, which has baselines, from that of a run."""

    baselines: Any = None
    checkpoint: str | None = None


def read_summary(path: Path) -> RunSummary | SearchSummary:
    """Returns a `result.json` of a run or of a search; raises InputError where it is damaged."""
    is_search = read_record(path, _AnySummary).baselines is not None
    return read_record(path, SearchSummary) if is_search else read_record(path, RunSummary)


def named_checkpoint(path: Path) -> str | None:
    """Returns the `checkpoint` that a `result.json` names, None where it names none.

    Raises InputError where the file is damaged.
    """
    return read_record(path, _AnySummary).checkpoint
