"""The rows that evaluations write: their numbers, and their form in JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EvaluationLabels:
    """The model and the scaling method that a row was measured with."""

    model: str
    method: str
    temperature: str = "own"
    """Which attention factor the method had: its "own" or the "searched" one."""


@dataclass(frozen=True)
class PerplexityRow:
    """The loss of one document under one method at one context length."""

    labels: EvaluationLabels
    length: int
    """Context length in tokens."""
    document: str
    """Name of the document."""
    tokens: int
    """Number of predicted tokens."""
    nll_sum: float
    """Sum of their negative log-likelihoods, in nats."""
    last_quarter_tokens: int
    """Number of predicted tokens in the last quarter of the context."""
    last_quarter_nll_sum: float
    """Sum of the negative log-likelihoods of these tokens, in nats."""
    window: int | None = None
    """Size of the sliding window in tokens; None for the first-token protocol."""
    stride: int | None = None
    """Tokens between the starts of two windows."""

    @property
    def perplexity(self) -> float:
        """Perplexity of the document, exp(nll_sum / tokens)."""
        return perplexity_of(self.nll_sum, self.tokens)

    @property
    def last_quarter_perplexity(self) -> float:
        """Perplexity of the predictions in the last quarter of the context."""
        return perplexity_of(self.last_quarter_nll_sum, self.last_quarter_tokens)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON values; `protocol` is "first-token" or "sliding"."""
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
    """The loss of all documents at positions bucket_start ≤ n < bucket_end of the context."""

    labels: EvaluationLabels
    length: int
    """Context length in tokens."""
    bucket_start: int
    bucket_end: int
    tokens: int
    """Number of predicted tokens at these positions."""
    nll_sum: float
    """Sum of their negative log-likelihoods, in nats."""

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
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
    """The number of passkeys answered exactly, at one context length and depth."""

    labels: EvaluationLabels
    length: int
    """Context length in tokens."""
    depth: float
    """Place of the passkey in the document, from 0 at its start to 1 at its end."""
    trials: int
    """Number of documents."""
    correct: int
    """Number of documents whose passkey was answered exactly."""

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON values; `accuracy` is correct / trials."""
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
    """Returns exp(nll_sum / tokens); infinite beyond the range of a float, NaN for a NaN sum."""
    try:
        return math.exp(nll_sum / tokens)
    except OverflowError:
        return math.inf
