"""The rows that evaluations write, one class per kind: what each number is, how JSON shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from megatron_longrope.artifacts.records import Count, FileRecord, Tokens

AttentionFactorSource = Literal["own", "searched"]
"""Whose attention factor was in force: the scaling method's own, or the one a search found."""

UNSCALED = "none"
"""The method of rows without any scaling, whatever the model arrives with."""
AS_IT_IS = "model"
"""The method of rows under the factors that the model itself arrives with."""

EXPORTED = "exported"
"""The model of rows that transformers measured on the exported folder."""


def is_untouched(method: str) -> bool:
    """Returns whether rows of this method measure the model as it arrived.

    It is named `none` where the model arrives unscaled, and `model` under scaling of its own.
    """
    return method in (UNSCALED, AS_IT_IS)


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Nats = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A sum of negative log-likelihoods; None where it was not a finite number, as JSON has no word."""


@dataclass(frozen=True)
class EvaluationLabels:
    """Whose numbers these are: the model, the scaling method, and where its attention factor is
    from."""

    model: str
    method: str
    attention_factor: AttentionFactorSource = "own"


class EvaluationRow(FileRecord):
    """What the rows of every kind say."""

    MARK: ClassVar[str]
    """A key that tells rows of this kind from the others in a file."""
    FILE: ClassVar[str | None] = None
    """The evals file these rows have to themselves; None: they stand in their task's own."""

    model: str
    method: str
    attention_factor: Annotated[
        AttentionFactorSource,
        # files of before said `temperature`
        Field(validation_alias=AliasChoices("attention_factor", "temperature")),
    ] = "own"

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain values."""
        return self.model_dump()


class PerplexityRow(EvaluationRow):
    """One document under one method at one length: sums in nats over `tokens` predictions, and
    those over the last quarter of the context.

    With `window` and `stride` (in tokens) the document was seen through a sliding window, without
    them from its first token on.
    """

    MARK: ClassVar[str] = "document"

    length: Tokens
    document: str
    tokens: Tokens
    nll_sum: Nats
    last_quarter_tokens: Tokens | None = None
    last_quarter_nll_sum: Nats = None
    window: Tokens | None = None
    stride: Tokens | None = None

    @property
    def perplexity(self) -> float:
        """Perplexity of the document, exp(nll_sum / tokens)."""
        return perplexity_of(self.nll_sum, self.tokens)

    @property
    def last_quarter_perplexity(self) -> float | None:
        """Perplexity of the predictions in the last quarter of the context; None if not summed."""
        if self.last_quarter_tokens is None:
            return None
        return perplexity_of(self.last_quarter_nll_sum, self.last_quarter_tokens)

    @property
    def protocol(self) -> Literal["first-token", "sliding"]:
        """How the document was read."""
        return "first-token" if self.window is None else "sliding"

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain values, with its perplexities and protocol."""
        return {
            **self.model_dump(),
            "perplexity": self.perplexity,
            "last_quarter_perplexity": self.last_quarter_perplexity,
            "protocol": self.protocol,
        }


class PositionRow(EvaluationRow):
    """All documents' predictions of the tokens at positions [bucket_start, bucket_end) of a context
    of `length`."""

    MARK: ClassVar[str] = "bucket_start"
    FILE: ClassVar[str | None] = "positions"

    length: Count = 0
    bucket_start: Count
    bucket_end: Tokens
    tokens: Tokens
    nll_sum: Nats

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain values, with its perplexity."""
        return {**self.model_dump(), "perplexity": perplexity_of(self.nll_sum, self.tokens)}


class RetrievalRow(EvaluationRow):
    """Exact matches among `trials` generated documents of one task and length, with what is asked
    for at one depth (0 first, 1 last; None where the task has none)."""

    MARK: ClassVar[str] = "trials"

    task: str = "passkey"  # the only task when rows did not yet name theirs
    length: Tokens
    depth: Annotated[float, Field(ge=0, le=1)] | None = None
    trials: Tokens
    correct: Count

    @model_validator(mode="after")
    def _no_more_correct_than_tried(self) -> RetrievalRow:
        if self.correct > self.trials:
            raise ValueError(
                f"more exact matches than trials: correct={self.correct}, trials={self.trials}"
            )
        return self

    @property
    def accuracy(self) -> float:
        """Share of exact matches, in [0, 1]."""
        return self.correct / self.trials

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain values, with its accuracy."""
        return {**self.model_dump(), "accuracy": self.accuracy}


Row = PerplexityRow | PositionRow | RetrievalRow
ROW_KINDS: tuple[type[Row], ...] = (PositionRow, RetrievalRow, PerplexityRow)


def perplexity_of(nll_sum: float | None, tokens: int) -> float:
    """Returns exp(nll_sum / tokens); infinite for a sum that is not finite, and where the result
    leaves the range of a float: such a loss is worse than every other."""
    if nll_sum is None or not math.isfinite(nll_sum):
        return math.inf
    try:
        return math.exp(nll_sum / tokens)
    except OverflowError:
        return math.inf
