"""The search objective: candidates in, perplexity on long documents out, spread over the data-parallel groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.data.passkey import PasskeyDocument
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.documents import Tokens
from megatron_longrope.evaluation.perplexity import DEFAULT_BATCH_TOKENS
from megatron_longrope.evaluation.spread import spread
from megatron_longrope.model import LongRopeModel, score_documents
from megatron_longrope.rope import FactorOrigin, RopeFactors, RopeGeometry
from megatron_longrope.search.types import Candidate, Evaluation

Counted = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ObjectivePart:
    """Documents that are scored together, which of their predictions count, and their share of the loss.

    `counted[d]` [tokens − 1] marks the counted predictions of document d (entry i is of token i + 1). Raises
    InputError for an empty part, a mask of another size or without a prediction, and a weight that is not above 0.
    """

    documents: tuple[Tokens, ...]
    counted: tuple[Counted, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.documents or len(self.counted) != len(self.documents):
            raise InputError("objective documents", len(self.documents), f"one or more, got {len(self.counted)} masks")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError("objective weight", self.weight, "must be finite and above 0")
        for index, (tokens, mask) in enumerate(zip(self.documents, self.counted, strict=True)):
            if len(tokens) < 2 or mask.shape != (len(tokens) - 1,) or not mask.any():
                rule = f"needs 1 counted prediction or more, marked by [{len(tokens) - 1}] booleans"
                raise InputError(f"objective documents[{index}]", f"{len(tokens)} tokens, mask {mask.shape}", rule)

    @classmethod
    def last_part(cls, documents: Sequence[Tokens], fraction: float = 1.0, weight: float = 1.0) -> ObjectivePart:
        """Returns a part that counts the predictions on the last `fraction` of each document; 1: all of them."""
        if not 0 < fraction <= 1:
            raise InputError("last_fraction", fraction, "must be above 0 and at most 1")
        masks = []
        for tokens in documents:
            first = len(tokens) - max(1, round(fraction * len(tokens)))
            masks.append(np.arange(1, len(tokens)) >= first)
        return cls(tuple(documents), tuple(masks), weight)

    @classmethod
    def answers(cls, documents: Sequence[PasskeyDocument], weight: float = 1.0) -> ObjectivePart:
        """Returns a part that counts the answer tokens of retrieval documents only."""
        masks = tuple(np.arange(1, len(document.tokens)) >= document.answer_start for document in documents)
        return cls(tuple(document.tokens for document in documents), masks, weight)


class PerplexityObjective:
    """Scores candidates on a model: called with candidates, it returns their evaluations, the same on every rank.

    Each data-parallel group evaluates its share of the candidates with its own TP×PP×CP. After a call the model has the
    factors of the last candidate asked, on every rank: whoever goes on with the model sets the factors wanted.

    An evaluation has an entry per document, parts in order. Token counts are those of the counted predictions. Its
    loss is Σ_p w_p·(Σ nll / Σ tokens of part p) / Σ_p w_p: to that end each part's sums are multiplied by a constant,
    `scales[p]`, which is exactly 1 where there is one part. So with one part the sums are plain nats.

    >>> objective = PerplexityObjective(model, documents, target_length=4096)
    >>> outcome = run_search(searcher, objective, journal, batch=objective.preferred_batch)
    """

    def __init__(
        self,
        model: LongRopeModel,
        documents: Sequence[Tokens] | Sequence[ObjectivePart],
        *,
        target_length: int,
        last_fraction: float = 1.0,
        method: str = "search",
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> None:
        model.backend.check_searching()
        self.model = model
        self.parts = _as_parts(documents, last_fraction)
        self.target_length = target_length
        self.origin = FactorOrigin(method=method)
        self.max_batch_tokens = max_batch_tokens
        self.scales = _part_scales(self.parts)
        self._documents = [tokens for part in self.parts for tokens in part.documents]
        self._masks = [mask for part in self.parts for mask in part.counted]
        self._scale_of = [s for part, s in zip(self.parts, self.scales, strict=True) for _ in part.documents]

    @property
    def cost_tokens(self) -> int:
        """Tokens that go through the model for one candidate."""
        return sum(len(tokens) for tokens in self._documents)

    @property
    def preferred_batch(self) -> int:
        """Candidates to ask for at a time, so that no data-parallel group is idle."""
        return self.model.runtime.data_parallel_size

    def __call__(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Returns the evaluation of each candidate, in the order asked; all ranks come with the same candidates."""
        evaluations = spread(self.model.runtime, candidates, self.evaluate)
        if candidates:  # groups ended with different ones; ranks that disagree about factors would go unnoticed
            self._set_factors(candidates[-1])
        return evaluations

    def evaluate(self, candidate: Candidate) -> Evaluation:
        """Returns the evaluation of one candidate by this rank's own model-parallel group alone."""
        self._set_factors(candidate)
        scores = score_documents(self.model, self._documents, max_batch_tokens=self.max_batch_tokens)
        sums = [
            float(score.nll[mask].sum(dtype=np.float64)) * scale
            for score, mask, scale in zip(scores, self._masks, self._scale_of, strict=True)
        ]
        return Evaluation(tuple(sums), tuple(int(mask.sum()) for mask in self._masks))

    def _set_factors(self, candidate: Candidate) -> None:
        self.model.set_factors(factors_of(candidate, self.model.geometry, self.target_length, self.origin))

    def part_losses(self, evaluation: Evaluation) -> list[float]:
        """Returns nats per counted token of each part, from an evaluation this objective made."""
        losses, start = [], 0
        for part, scale in zip(self.parts, self.scales, strict=True):
            stop = start + len(part.documents)
            nats = math.fsum(evaluation.nll_sums[start:stop]) / scale
            losses.append(nats / sum(evaluation.token_counts[start:stop]))
            start = stop
        return losses

    def identity(self) -> dict[str, Any]:
        """Returns JSON values that say what is measured, for fingerprints: sizes, weights, target, batching."""
        return {
            "target_length": self.target_length,
            "weights": [part.weight for part in self.parts],
            "lengths": [len(tokens) for tokens in self._documents],
            "counted": [int(mask.sum()) for mask in self._masks],
            "max_batch_tokens": self.max_batch_tokens,
        }


def factors_of(
    candidate: Candidate,
    geometry: RopeGeometry,
    target_length: int,
    origin: FactorOrigin | None = None,
) -> RopeFactors:
    """Returns a candidate's λ, n̂ and t as factors of `geometry` for `target_length` tokens; origin: method "search"."""
    if len(candidate.rescale) != geometry.num_pairs:
        raise InputError("rescale", len(candidate.rescale), f"one factor per rotary pair ({geometry.num_pairs})")
    return RopeFactors(
        rescale=candidate.rescale,
        start_tokens=candidate.start_tokens,
        attention_factor=candidate.attention_factor,
        original_length=geometry.original_length,
        target_length=target_length,
        base=geometry.base,
        head_dim=geometry.head_dim,
        origin=origin or FactorOrigin(method="search"),
    )


def _as_parts(documents: Sequence[Tokens] | Sequence[ObjectivePart], last_fraction: float) -> tuple[ObjectivePart, ...]:
    parts = [item for item in documents if isinstance(item, ObjectivePart)]
    if not parts:
        return (ObjectivePart.last_part([np.asarray(item) for item in documents], last_fraction),)
    if len(parts) != len(documents):
        raise InputError("objective documents", len(documents), "either documents or parts, not both")
    if last_fraction != 1:
        raise InputError("last_fraction", last_fraction, "with parts, each says itself what counts")
    return tuple(parts)


def _part_scales(parts: Sequence[ObjectivePart]) -> tuple[float, ...]:
    """c_p with Σ_p c_p·nll_p / Σ_p tokens_p = Σ_p w_p·(nll_p / tokens_p) / Σ_p w_p; exactly 1 for a single part."""
    counts = [sum(int(mask.sum()) for mask in part.counted) for part in parts]
    weights = math.fsum(part.weight for part in parts)
    return tuple(part.weight / weights * (sum(counts) / count) for part, count in zip(parts, counts, strict=True))
