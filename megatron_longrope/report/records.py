"""What the files of a run directory hold, as far as the report reads them: strict about types, deaf
to extra keys."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from megatron_longrope.artifacts.checks import Check
from megatron_longrope.artifacts.rows import AttentionFactorSource

Count = Annotated[int, Field(ge=0)]
Tokens = Annotated[int, Field(gt=0)]
Nats = Annotated[float, Field(ge=0, allow_inf_nan=False)]


MAX_LOSS = 700.0
"""Nats per token whose exponential still is a float."""


class Record(BaseModel):
    """One row or object of a result file; a wrong type is an error, an unknown key is not."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())


class MetricsRow(Record):
    """One optimizer step; `loss` in nats per token (may be NaN: a diverged run is reported, not
    hidden)."""

    stage: str
    step: Count
    loss: float
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    tokens: Count | None = None
    seconds: float | None = None


class ModelFacts(Record):
    """The model of a run; everything but its name may be missing."""

    name: str
    parameters: Count | None = None
    original_length: Tokens | None = None
    hidden_size: Tokens | None = None


class StageRow(Record):
    """One pipeline stage and what it cost, in seconds."""

    name: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    status: str


class HeldOut(Record):
    """The documents that no search and no training saw."""

    sha256: str
    documents: tuple[str, ...] = ()


class RunResult(Record):
    """`result.json`."""

    format: Literal[1]
    model: ModelFacts | None = None
    target_length: Tokens | None = None
    stages: tuple[StageRow, ...] = ()
    checks: tuple[Check, ...] = ()
    held_out: HeldOut | None = None
    environment: dict[str, str | int | float | None] = {}
    summary: dict[str, float | str] = {}


class BaselineRow(Record):
    """A baseline on a search's documents; `ratio`: its perplexity over the best one's, with a 95 %
    interval.

    Numbers that were not finite are null.
    """

    method: str
    attention_factor: Annotated[
        AttentionFactorSource,
        Field(validation_alias=AliasChoices("attention_factor", "temperature")),
    ]
    perplexity: float | None
    ratio: float | None
    low: float | None
    high: float | None


class SearchCost(Record):
    """What evaluations took; tokens are those that went through the model, seconds of wall time."""

    evaluations: Count
    tokens: Count
    backward_tokens: Count
    flops: float
    seconds: float


class ResultKind(Record):
    """What tells the two kinds of `result.json` apart: a search's has baselines."""

    baselines: Any = None


class SearchResult(SearchCost):
    """`result.json` of `longrope search`: what the search that ran last found and what it cost."""

    perplexity: float
    target_length: Tokens
    journal: str | None = None
    """Its journal's name; None in results of older versions, all of them named `search-LENGTH`."""
    stopped_early: Count
    baselines: tuple[BaselineRow, ...]
    baselines_cost: SearchCost | None = None
    """Beyond the search's own evaluations; None in results of older versions."""

    @property
    def journal_name(self) -> str:
        return self.journal or f"search-{self.target_length}"

    @property
    def best_baseline(self) -> BaselineRow | None:
        """The baseline of lowest perplexity; None where none has one."""
        finite = [(row.perplexity, row) for row in self.baselines if row.perplexity is not None]
        return min(finite, key=lambda item: item[0])[1] if finite else None


class FactorOrigin(Record):
    """Where a factor set came from."""

    method: str
    score: float | None = None


class Factors(Record):
    """Rescale factors λ (one per rotary pair), kept start positions n̂ and attention factor
    t."""

    rescale: Annotated[
        tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)
    ]
    start_tokens: Count = 0
    attention_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    original_length: Tokens
    target_length: Tokens
    base: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    head_dim: Tokens
    origin: FactorOrigin

    @model_validator(mode="after")
    def _one_per_pair(self) -> Factors:
        if 2 * len(self.rescale) != self.head_dim:
            raise ValueError(
                f"head_dim {self.head_dim} needs {self.head_dim // 2} factors, got "
                f"{len(self.rescale)}"
            )
        return self


class FactorRange(Record):
    """Factors that serve inputs of up to `up_to` tokens (None: every longer one)."""

    up_to: Tokens | None = None
    factors: Factors


class FactorFile(Record):
    """A factor set on disk."""

    format: Literal["longrope-factors"]
    version: Literal[1]
    ranges: Annotated[tuple[FactorRange, ...], Field(min_length=1)]


class SearchCandidate(Record):
    """One point of a search."""

    rescale: tuple[float, ...]
    start_tokens: Count = 0
    attention_factor: float = 1.0


class JournalObjective(Record):
    """What candidates were scored on: documents of these `lengths` in tokens, and what else fixes
    an evaluation."""

    model_config = ConfigDict(extra="allow")

    target_length: Tokens
    lengths: Annotated[tuple[Tokens, ...], Field(min_length=1)]

    @property
    def comparable(self) -> dict[str, Any]:
        """What must be the same for perplexities of two journals to be compared; stopping early
        changes none."""
        return self.model_dump(exclude={"early_stopping", "ladder"})


class JournalHeader(Record):
    """Line 1 of a search journal: who proposed the candidates, and what they were scored on."""

    searcher: str
    objective: JournalObjective


class SearchEntry(Record):
    """One evaluated candidate of a search journal; NaN and infinities are written as words."""

    index: Count
    origin: str
    candidate: SearchCandidate
    nll_sums: tuple[float | Literal["nan", "inf", "-inf"], ...]
    token_counts: tuple[Tokens, ...]
    completed: bool
    sample: tuple[Count, ...] | None = None
    gradient: dict[str, Any] | None = None
    cost_tokens: Count
    seconds: float

    @property
    def stopped_early(self) -> bool:
        return not self.completed and self.sample is None

    @property
    def perplexity(self) -> float:
        """exp(Σnll / Σtokens) over the documents scored; inf where that is not a finite number."""
        tokens = sum(self.token_counts)
        loss = math.fsum(float(value) for value in self.nll_sums) / tokens if tokens else math.inf
        return math.exp(loss) if loss < MAX_LOSS else math.inf
