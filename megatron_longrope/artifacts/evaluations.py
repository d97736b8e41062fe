"""Candidates of a search and what they came to: the values that searchers, objectives and journals
hand to one another."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.artifacts.records import FileRecord
from megatron_longrope.artifacts.rows import perplexity_of
from megatron_longrope.atomic import finite_or_none
from megatron_longrope.errors import InputError


@dataclass(frozen=True)
class Candidate:
    """One point of the search: λ per pair, n̂ in tokens and the attention factor t (q·k is
    multiplied by t²).

    Raises InputError where a number is not finite, λ or t is not positive, or n̂ is negative.
    """

    rescale: tuple[float, ...]
    start_tokens: int = 0
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rescale", tuple(float(value) for value in self.rescale))
        object.__setattr__(self, "attention_factor", float(self.attention_factor))
        object.__setattr__(self, "start_tokens", int(self.start_tokens))
        if not self.rescale or not all(
            math.isfinite(value) and value > 0 for value in self.rescale
        ):
            raise InputError("rescale", self.rescale, "one finite factor above 0 per rotary pair")
        if not (math.isfinite(self.attention_factor) and self.attention_factor > 0):
            raise InputError(
                "attention_factor", self.attention_factor, "must be finite and above 0"
            )
        if self.start_tokens < 0:
            raise InputError("start_tokens", self.start_tokens, "must be 0 tokens or more")

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back an equal candidate, bit for bit."""
        return {
            "rescale": list(self.rescale),
            "start_tokens": self.start_tokens,
            "attention_factor": self.attention_factor,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Returns the candidate that `to_json` wrote."""
        return cls(tuple(data["rescale"]), data["start_tokens"], data["attention_factor"])


@dataclass(frozen=True, eq=False)
class Gradient:
    """Derivatives of the loss (nats per token): by λ, float64 `[num_pairs]`, and by the attention
    factor."""

    rescale: NDArray[np.float64]
    attention_factor: float


@dataclass(frozen=True)
class Evaluation:
    """Negative log-likelihood (nats) and predicted tokens of each document that was scored, in
    document order.

    `completed` is False where scoring was stopped before the last document, and for a sample of the
    documents. Sums and counts are kept apart so that they can be added up over documents and ranks
    and divided once.
    """

    nll_sums: tuple[float, ...]
    token_counts: tuple[int, ...]
    completed: bool = True
    gradient: Gradient | None = field(default=None, compare=False)
    cost_tokens: int = -1
    """Tokens that went through the model for this; by default as many as were predicted."""
    sample: tuple[int, ...] | None = None
    """The documents scored, where these were asked for alone; None: from the first one on."""
    rungs: tuple[float, ...] = ()
    """Nats per token on shorter contexts, scored first: for early stopping, no part of the loss."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nll_sums", tuple(float(value) for value in self.nll_sums))
        object.__setattr__(self, "token_counts", tuple(int(count) for count in self.token_counts))
        if self.cost_tokens < 0:
            object.__setattr__(self, "cost_tokens", self.tokens)
        if len(self.nll_sums) != len(self.token_counts):
            rule = f"as many sums as token counts ({len(self.token_counts)})"
            raise InputError("nll_sums", len(self.nll_sums), rule)
        if any(count <= 0 for count in self.token_counts):
            raise InputError(
                "token_counts", self.token_counts, "every scored document predicts 1 token or more"
            )
        assert self.sample is None or not self.completed, "a sample is compared with nothing"

    @property
    def tokens(self) -> int:
        """Predicted tokens over all documents."""
        return sum(self.token_counts)

    @property
    def loss(self) -> float:
        """Nats per token, Σ nll / Σ tokens; NaN where nothing was scored."""
        return math.fsum(self.nll_sums) / self.tokens if self._sums_are_finite else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def usable(self) -> bool:
        """Whether this may be compared with others: completed, and finite."""
        return self.completed and math.isfinite(self.loss)

    def to_json(self) -> dict[str, Any]:
        """Returns strict JSON values (NaN and infinities as words); `from_json` gives back the same
        numbers."""
        gradient = self.gradient and {
            "rescale": [_number_to_json(value) for value in self.gradient.rescale.tolist()],
            "attention_factor": _number_to_json(self.gradient.attention_factor),
        }
        return {
            "nll_sums": [_number_to_json(value) for value in self.nll_sums],
            "token_counts": list(self.token_counts),
            "completed": self.completed,
            "gradient": gradient,
            "cost_tokens": self.cost_tokens,
            **({} if self.sample is None else {"sample": list(self.sample)}),
            **({"rungs": [_number_to_json(value) for value in self.rungs]} if self.rungs else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Returns the evaluation that `to_json` wrote."""
        stored = data["gradient"]
        gradient = stored and Gradient(
            np.array([float(value) for value in stored["rescale"]]),
            float(stored["attention_factor"]),
        )
        sums = tuple(float(value) for value in data["nll_sums"])
        sample = data.get("sample")
        return cls(
            sums,
            tuple(data["token_counts"]),
            bool(data["completed"]),
            gradient,
            int(data["cost_tokens"]),
            None if sample is None else tuple(int(document) for document in sample),
            tuple(float(value) for value in data.get("rungs", ())),
        )

    @property
    def _sums_are_finite(self) -> bool:
        return bool(self.nll_sums) and all(math.isfinite(value) for value in self.nll_sums)


def _number_to_json(value: float) -> float | str:
    return float(value) if math.isfinite(value) else repr(float(value))


@dataclass(frozen=True)
class ScoredPart:
    """Consecutive documents of an evaluation whose loss is one average over their tokens: `texts`
    says of each which text it was cut from, `share` how much of the whole loss the average is.
    """

    name: str
    texts: tuple[Hashable, ...]
    share: float = 1.0
    is_text: bool = True
    """Whether all its predictions are of text; else they are the answers of generated documents."""


class PartLoss(FileRecord):
    """Nats per token over one part of a loss alone, and the perplexity of a part that is text; None
    stands for a number that was not finite."""

    name: str
    loss: float | None
    perplexity: float | None = None

    @property
    def words(self) -> str:
        """The part and its number, as it is printed."""
        if self.perplexity is not None:
            return f"{self.name} perplexity {self.perplexity:.4f}"
        return (
            f"{self.name} not finite" if self.loss is None else f"{self.name} {self.loss:.4f} nats"
        )


def part_losses(evaluation: Evaluation, parts: Sequence[ScoredPart]) -> tuple[PartLoss, ...]:
    """Returns nats per counted token of each part, from an evaluation of all of them: its sums are
    multiplied such that divided by all tokens they add up to the loss."""
    found: list[PartLoss] = []
    start = 0
    for part in parts:
        stop = start + len(part.texts)
        nats = math.fsum(evaluation.nll_sums[start:stop]) / (part.share * evaluation.tokens)
        perplexity = perplexity_of(nats, 1) if part.is_text else math.nan
        found.append(
            PartLoss(
                name=part.name, loss=finite_or_none(nats), perplexity=finite_or_none(perplexity)
            )
        )
        start = stop
    return tuple(found)


@dataclass(frozen=True)
class Provenance:
    """How a candidate came about: its generation (0 is the initial population) and `seed`,
    `mutant`, `crossover`…"""

    generation: int
    origin: str
