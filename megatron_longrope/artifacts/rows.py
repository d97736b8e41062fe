"""The rows that evaluations write: what each number is, and how it looks in JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EvaluationLabels:
    """Whose numbers these are: the model, the scaling method, and whether its temperature is its
    own or searched."""

    model: str
    method: str
    temperature: str = "own"


@dataclass(frozen=True)
class PerplexityRow:
    """One document under one method at one length: sums in nats over `tokens` predictions, and the
    last quarter's."""

    labels: EvaluationLabels
    length: int
    document: str
    tokens: int
    nll_sum: float
    last_quarter_tokens: int
    last_quarter_nll_sum: float
    window: int | None = None
    stride: int | None = None

    @property
    def perplexity(self) -> float:
        """exp(Σ nll / Σ tokens)."""
        return perplexity_of(self.nll_sum, self.tokens)

    @property
    def last_quarter_perplexity(self) -> float:
        """Perplexity of the predictions in the last quarter of the context."""
        return perplexity_of(self.last_quarter_nll_sum, self.last_quarter_tokens)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain values; `protocol` is "first-token" or "sliding"."""
        return {
            "model": self.labels.model,
            "method": self.labels.method,
            "temperature": self.labels.temperature,
            "length": self.length,
            "document": self.document,
            "tokens": self.tokens,
            "nll_sum": self.nll_sum,
            "perplexity": self.perplexity,
            "last_quarter_tokens": self.last_quarter_tokens,
            "last_quarter_nll_sum": self.last_quarter_nll_sum,
            "last_quarter_perplexity": self.last_quarter_perplexity,
            "protocol": "first-token" if self.window is None else "sliding",
            "window": self.window,
            "stride": self.stride,
        }


@dataclass(frozen=True)
class PositionRow:
    """All documents' predictions of the tokens at positions [bucket_start, bucket_end) of a context
    of `length`."""

    labels: EvaluationLabels
    length: int
    bucket_start: int
    bucket_end: int
    tokens: int
    nll_sum: float

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain values."""
        return {
            "model": self.labels.model,
            "method": self.labels.method,
            "temperature": self.labels.temperature,
            "length": self.length,
            "bucket_start": self.bucket_start,
            "bucket_end": self.bucket_end,
            "tokens": self.tokens,
            "nll_sum": self.nll_sum,
            "perplexity": perplexity_of(self.nll_sum, self.tokens),
        }


@dataclass(frozen=True)
class PasskeyRow:
    """Exact matches among `trials` documents of one length with the key at one depth (0 first, 1
    last)."""

    labels: EvaluationLabels
    length: int
    depth: float
    trials: int
    correct: int

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain values; `accuracy` is correct / trials."""
        return {
            "model": self.labels.model,
            "method": self.labels.method,
            "length": self.length,
            "depth": self.depth,
            "trials": self.trials,
            "correct": self.correct,
            "accuracy": self.correct / self.trials,
        }


def perplexity_of(nll_sum: float, tokens: int) -> float:
    """Returns exp(nll_sum / tokens); infinite where that leaves the range of a float, NaN for a NaN
    sum."""
    try:
        return math.exp(nll_sum / tokens)
    except OverflowError:
        return math.inf
