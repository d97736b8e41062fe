"""Candidates and evaluations: what searchers, objectives and journals hand to one another."""

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
    """One point of a search space: λ of each pair, n̂ in tokens, and the attention factor t.

    Raises InputError where a number is not finite, λ or t is not positive, or n̂ is negative.

    >>> Candidate((1.0, 4.0), attention_factor=1.1).to_json()
    {'rescale': [1.0, 4.0], 'start_tokens': 0, 'attention_factor': 1.1}
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
        """Returns JSON values; `from_json` makes the same candidate of them, bit for bit."""
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
    """Derivatives of the loss in nats per token by λ and by the attention factor."""

    rescale: NDArray[np.float64]
    """∂loss/∂λ_i of each pair, float64 [num_pairs]."""
    attention_factor: float
    """∂loss/∂t."""


@dataclass(frozen=True)
class Evaluation:
    """The losses of one candidate on the documents that were scored, in document order.

    Sums and counts are kept apart so that they can be added up over documents and ranks and divided
    once: a mean of means would weight the tokens of short documents more.

    >>> evaluation = Evaluation(nll_sums=(200.0, 10.0), token_counts=(100, 5))
    >>> evaluation.loss, round(evaluation.perplexity, 3)
    (2.0, 7.389)
    """

    nll_sums: tuple[float, ...]
    """Negative log-likelihood of each document, in nats."""
    token_counts: tuple[int, ...]
    """Number of predicted tokens of each document."""
    completed: bool = True
    """False where scoring was stopped before the last document, and for a sample of documents."""
    gradient: Gradient | None = field(default=None, compare=False)
    """The derivatives of the loss, where a backward pass was made."""
    cost_tokens: int = -1
    """Tokens that went through the model; by default as many as were predicted."""
    sample: tuple[int, ...] | None = None
    """Numbers of the documents scored where only these were asked for; None: from the first on."""
    rungs: tuple[float, ...] = ()
    """Nats per token at shorter lengths, for early stopping; they are no part of the loss."""
    forward_equivalents: float | None = None
    """Operations of all passes over those of one forward pass over all documents; None: unknown."""

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
        """Number of predicted tokens over all documents."""
        return sum(self.token_counts)

    @property
    def loss(self) -> float:
        """Nats per token, Σ nll / Σ tokens; NaN where nothing or no finite sum was scored."""
        return math.fsum(self.nll_sums) / self.tokens if self._sums_are_finite else math.nan

    @property
    def perplexity(self) -> float:
        """Perplexity exp(loss); infinite where that exceeds the range of a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def usable(self) -> bool:
        """Whether the loss may be compared with others: scoring was completed and it is finite."""
        return self.completed and math.isfinite(self.loss)

    def to_json(self) -> dict[str, Any]:
        """Returns strict JSON values, which `from_json` reads; NaN and infinities become words."""
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
            **(
                {}
                if self.forward_equivalents is None
                else {"forward_equivalents": self.forward_equivalents}
            ),
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
        sample, passes = data.get("sample"), data.get("forward_equivalents")
        return cls(
            sums,
            tuple(data["token_counts"]),
            bool(data["completed"]),
            gradient,
            int(data["cost_tokens"]),
            None if sample is None else tuple(int(document) for document in sample),
            tuple(float(value) for value in data.get("rungs", ())),
            None if passes is None else float(passes),
        )

    @property
    def _sums_are_finite(self) -> bool:
        return bool(self.nll_sums) and all(math.isfinite(value) for value in self.nll_sums)


def _number_to_json(value: float) -> float | str:
    """Returns `value`, or a word such as "nan" for what JSON has no number for."""
    return float(value) if math.isfinite(value) else repr(float(value))


@dataclass(frozen=True)
class ScoredPart:
    """Consecutive documents of an evaluation whose loss is one average over their tokens."""

    name: str
    texts: tuple[Hashable, ...]
    """The text that each document was cut from."""
    share: float = 1.0
    """The weight of the average in the whole loss; the shares of all parts add up to 1."""
    is_text: bool = True
    """Whether predictions of text count, and not the answers in generated documents."""


class PartLoss(FileRecord):
    """The loss of one part alone; None stands for a number that was not finite."""

    name: str
    loss: float | None
    """Nats per counted token."""
    perplexity: float | None = None
    """exp(loss) of a part that is text, None for answers."""

    @property
    def words(self) -> str:
        """The name of the part and its perplexity or loss, as they are printed."""
        if self.perplexity is not None:
            return f"{self.name} perplexity {self.perplexity:.4f}"
        return (
            f"{self.name} not finite" if self.loss is None else f"{self.name} {self.loss:.4f} nats"
        )


def part_losses(evaluation: Evaluation, parts: Sequence[ScoredPart]) -> tuple[PartLoss, ...]:
    """Returns the nats per counted token of each part of a completed evaluation.

    The sums of an evaluation are scaled such that all of them over all tokens are the loss; the
    share of a part undoes that.
    """
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
    """The round and the step of a search that a candidate came from."""

    generation: int
    """Number of the round; 0 is the initial population."""
    origin: str
    """One word for the step, such as `seed`, `mutant` or `crossover`."""
