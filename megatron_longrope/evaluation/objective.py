"""The search objective: scores candidates by the loss of a model on long documents.

Candidates, or the passes of one candidate, are spread over the data-parallel groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.artifacts.evaluations import (
    Candidate,
    Evaluation,
    Gradient,
    PartLoss,
    ScoredPart,
    part_losses,
)
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.dispatch import Dispatcher
from megatron_longrope.evaluation.documents import Tokens
from megatron_longrope.evaluation.objective_parts import (
    ObjectivePart,
    as_parts,
    content_sha256,
    ends_only,
    part_scales,
)
from megatron_longrope.evaluation.scoring_cost import ScoringCost
from megatron_longrope.evaluation.tasks.base import DEFAULT_BATCH_TOKENS
from megatron_longrope.model import LongRopeModel, score_documents, score_with_gradient
from megatron_longrope.rope import FactorOrigin, RopeFactors, RopeGeometry
from megatron_longrope.search.types import Terms


class Pass(NamedTuple):
    """Documents that share a forward pass."""

    documents: list[int]
    """Indices of the documents."""
    rung: int | None = None
    """The rung of the ladder they belong to; None for documents that count."""


class PerplexityObjective:
    """Scores candidates on a model: maps candidates to their evaluations, the same on every rank.

    Each data-parallel group evaluates candidates with its own TP×PP×CP ranks and takes the next one
    as soon as it is free; where there are fewer candidates than groups and none may be stopped
    early, the groups share the passes of each. After a call the model has the factors of the last
    candidate, on every rank: whoever goes on with the model sets the factors wanted.

    An evaluation has an entry per document, parts in order. Its token counts are those of the
    counted predictions. Its loss is Σ_p w_p·(Σ nll / Σ tokens of part p) / Σ_p w_p: to that end the
    sums of each part are multiplied by a constant, `scales[p]`. The constant is exactly 1 where
    there is one part, so that the sums are plain nats. The gradient of a sample of documents is the
    gradient of their share of that loss, times documents over sampled documents, and so an unbiased
    estimate of the gradient over all.

    Args:
        model: The model to score on.
        documents: Token ids [tokens] of each document, or parts that say what counts.
        target_length: Tokens that the factors are made for.
        last_fraction: The part at the end of each document whose predictions count; for documents.
        max_batch_tokens: Short documents share a forward pass up to this many tokens.
        ladder: Documents of shorter lengths, a list per length, which are scored first so that
            hopeless candidates are stopped cheaply. They do not count in the loss, and are left out
            where nothing can be stopped: for gradients and samples.

    >>> objective = PerplexityObjective(model, documents, target_length=96)
    >>> (evaluation,) = objective([Candidate((1.0,) * 8)])
    >>> evaluation.completed, evaluation.token_counts
    (True, (95, 79))
    """

    def __init__(
        self,
        model: LongRopeModel,
        documents: Sequence[Tokens] | Sequence[ObjectivePart],
        *,
        target_length: int,
        last_fraction: float = 1.0,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        ladder: Sequence[Sequence[Tokens]] = (),
    ) -> None:
        model.backend.check_searching()
        self.model = model
        self.parts = as_parts(documents, last_fraction)
        self.target_length = target_length
        self.origin = FactorOrigin(method="search")
        self.max_batch_tokens = max_batch_tokens
        self.scales = part_scales(self.parts)
        self._documents = [tokens for part in self.parts for tokens in part.documents]
        self._masks = [mask for part in self.parts for mask in part.counted]
        self._scale_of = [
            s for part, s in zip(self.parts, self.scales, strict=True) for _ in part.documents
        ]
        self._ladder = [list(rung) for rung in ladder]
        self._passes = [
            Pass(list(range(len(rung))), number) for number, rung in enumerate(self._ladder)
        ]
        self._passes += _passes([len(tokens) for tokens in self._documents], max_batch_tokens)
        self._dispatcher = Dispatcher(model.runtime)

    @property
    def num_documents(self) -> int:
        """Number of documents of all parts, and so of entries in an evaluation."""
        return len(self._documents)

    @cached_property
    def cost(self) -> ScoringCost:
        """What evaluations by this objective take."""
        return ScoringCost(
            self.model.shape,
            self.model.recompute,
            tuple(map(len, self._documents)),
            tuple(tuple(map(len, rung)) for rung in self._ladder),
        )

    @property
    def cost_tokens(self) -> int:
        """Number of tokens that one candidate takes which is not stopped early."""
        return sum(len(tokens) for texts in (*self._ladder, self._documents) for tokens in texts)

    def __call__(
        self, candidates: Sequence[Candidate], terms: Terms | None = None
    ) -> list[Evaluation]:
        """Returns the evaluation of each candidate; all ranks come with the same candidates."""
        return list(self.stream(candidates, terms or Terms()))

    def stream(self, candidates: Sequence[Candidate], terms: Terms) -> Iterator[Evaluation]:
        """Yields the evaluations, each as soon as it and all before it are known.

        Candidates that may be stopped are never spread: which document a candidate is stopped at is
        known after that document, and every pass that another group had begun by then would be in
        vain. Each group therefore takes a candidate of its own, and groups without one wait.
        """
        num_groups = self.model.runtime.data_parallel_size
        if terms.judge is not None or len(candidates) >= num_groups:
            whole = self._dispatcher.in_order(
                len(candidates), lambda i: self._to_json(candidates[i], terms)
            )
            yield from (Evaluation.from_json(result) for result in whole)
        else:
            yield from self._stream_passes(candidates, terms)
        if candidates:
            # The groups ended with different candidates, and nothing later would notice ranks that
            # disagree about the factors.
            self._set_factors(candidates[-1])

    def without_ladder(self) -> PerplexityObjective:
        """Returns the same objective without the ladder, for candidates that none may stop."""
        plain = copy(self)
        plain.__dict__.pop("cost", None)  # it knows of the ladder
        plain._ladder, plain._passes = [], [one for one in self._passes if one.rung is None]
        return plain

    def evaluate(self, candidate: Candidate, terms: Terms | None = None) -> Evaluation:
        """Returns the evaluation of one candidate by this rank's model-parallel group alone."""
        asked = terms or Terms()
        passes = self._passes_of(asked)
        return self._joined(
            (self._pass(candidate, one, asked) for one in passes), len(passes), asked
        )

    def _to_json(self, candidate: Candidate, terms: Terms) -> dict[str, Any]:
        return self.evaluate(candidate, terms).to_json()

    def _stream_passes(self, candidates: Sequence[Candidate], terms: Terms) -> Iterator[Evaluation]:
        """Yields the same evaluations, with the passes of each candidate spread over the groups."""
        passes = self._passes_of(terms)

        def one_pass(item: int) -> dict[str, Any]:
            candidate, number = divmod(item, len(passes))
            return self._pass(candidates[candidate], passes[number], terms).to_json()

        results = self._dispatcher.in_order(len(candidates) * len(passes), one_pass)
        parts = (Evaluation.from_json(result) for result in results)
        for _ in candidates:
            of_candidate = [next(parts) for _ in passes]
            yield self._joined(of_candidate, len(passes), terms)

    def _passes_of(self, terms: Terms) -> list[Pass]:
        """Returns all passes, or those over the sampled documents."""
        if terms.sample is not None:
            lengths = [len(self._documents[document]) for document in terms.sample]
            shared = _passes(lengths, self.max_batch_tokens)
            return [Pass([terms.sample[i] for i in one.documents]) for one in shared]
        return [one for one in self._passes if one.rung is None or not terms.gradient]

    def _pass(self, candidate: Candidate, one: Pass, terms: Terms) -> Evaluation:
        """Returns the evaluation of one forward pass, with a backward pass for gradients.

        The gradient is of Σ_d scale_d·Σ nll_d / (share · counted predictions of all documents).
        """
        self._set_factors(candidate)
        if one.rung is not None:
            return self._on_rung(self._ladder[one.rung])
        documents = one.documents
        texts = [self._documents[d] for d in documents]
        gradient = None
        nats: list[NDArray[np.floating[Any]]]
        if terms.gradient:
            share = 1.0 if terms.sample is None else len(terms.sample) / self.num_documents
            by_token = [self._scale_of[d] / (share * self._num_counted) for d in documents]
            weights = [
                self._masks[d].astype(np.float64) * by
                for d, by in zip(documents, by_token, strict=True)
            ]
            nats, by_factors = score_with_gradient(
                self.model, texts, weights, max_batch_tokens=self.max_batch_tokens
            )
            gradient = Gradient(by_factors.rescale, by_factors.attention_factor)
        else:
            scores = score_documents(self.model, texts, max_batch_tokens=self.max_batch_tokens)
            nats = [np.asarray(score.nll) for score in scores]
        sums = [
            float(nll[self._masks[d]].sum(dtype=np.float64)) * self._scale_of[d]
            for nll, d in zip(nats, documents, strict=True)
        ]
        counts = tuple(int(self._masks[d].sum()) for d in documents)
        return Evaluation(
            tuple(sums), counts, gradient=gradient, cost_tokens=sum(len(text) for text in texts)
        )

    def _on_rung(self, texts: Sequence[Tokens]) -> Evaluation:
        """Returns an evaluation without documents that holds the mean loss on one rung."""
        scores = score_documents(self.model, texts, max_batch_tokens=self.max_batch_tokens)
        nats = math.fsum(float(np.asarray(score.nll).sum(dtype=np.float64)) for score in scores)
        per_token = nats / sum(len(text) - 1 for text in texts)
        return Evaluation((), (), cost_tokens=sum(map(len, texts)), rungs=(per_token,))

    @cached_property
    def _num_counted(self) -> int:
        return sum(int(mask.sum()) for mask in self._masks)

    def _joined(self, passes: Iterable[Evaluation], num_passes: int, terms: Terms) -> Evaluation:
        """Returns all passes as one evaluation, or those up to where `terms.judge` stops it."""
        done: list[Evaluation] = []
        for one in passes:
            done.append(one)
            is_whole = len(done) == num_passes
            so_far = _sum_of(done, is_whole, terms.sample)
            if not is_whole and terms.judge is not None and terms.judge(so_far):
                break
        return replace(so_far, forward_equivalents=self.cost.forward_equivalents(so_far))

    def _set_factors(self, candidate: Candidate) -> None:
        self.model.set_factors(
            factors_of(candidate, self.model.geometry, self.target_length, self.origin)
        )

    @cached_property
    def scored_parts(self) -> tuple[ScoredPart, ...]:
        """The parts that documents of an evaluation belong to, for margins and separate losses."""
        weights = math.fsum(part.weight for part in self.parts)
        return tuple(
            ScoredPart(
                part.name,
                part.texts or tuple((number, i) for i in range(len(part.documents))),
                part.weight / weights,
                not part.is_generated,
            )
            for number, part in enumerate(self.parts)
        )

    @property
    def is_perplexity(self) -> bool:
        """Whether exp(loss) is a perplexity, which it is not where several parts are mixed."""
        return len(self.parts) == 1 and not self.parts[0].is_generated

    def part_losses(self, evaluation: Evaluation) -> tuple[PartLoss, ...]:
        """Returns the loss of each part of a completed evaluation by this objective."""
        return part_losses(evaluation, self.scored_parts)

    def identity(self) -> dict[str, Any]:
        """Returns JSON values that say how candidates are scored, for fingerprints.

        They hold sizes, weights, target and batching; `model_identity` and `documents_sha256` say
        which model and which documents. Where that does not say it all, because documents were
        generated or because something else than their ends counts, `generated_sha256` is a digest
        of every token and every mask.
        """
        needs_content = any(part.is_generated or not ends_only(part) for part in self.parts)
        return {
            "target_length": self.target_length,
            "weights": [part.weight for part in self.parts],
            "lengths": [len(tokens) for tokens in self._documents],
            "counted": [int(mask.sum()) for mask in self._masks],
            "max_batch_tokens": self.max_batch_tokens,
            **(
                {"ladder": [[len(text) for text in rung] for rung in self._ladder]}
                if self._ladder
                else {}
            ),
            **({"generated_sha256": content_sha256(self.parts)} if needs_content else {}),
        }


def factors_of(
    candidate: Candidate,
    geometry: RopeGeometry,
    target_length: int,
    origin: FactorOrigin | None = None,
) -> RopeFactors:
    """Returns a candidate's λ, n̂ and t as factors of `geometry` for `target_length` tokens.

    `origin` says where they come from; by default from the method "search".
    """
    if len(candidate.rescale) != geometry.num_pairs:
        raise InputError(
            "rescale", len(candidate.rescale), f"one factor per rotary pair ({geometry.num_pairs})"
        )
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


def _passes(lengths: Sequence[int], max_tokens: int) -> list[Pass]:
    """Returns which documents share a forward pass: neighbours of up to `max_tokens` in all.

    A longer document has a pass to itself.
    """
    passes: list[Pass] = []
    room = 0
    for document, length in enumerate(lengths):
        if length > room:
            passes.append(Pass([]))
            room = max(max_tokens, length)
        passes[-1].documents.append(document)
        room -= length
    return passes


def _sum_of(
    passes: Sequence[Evaluation], is_whole: bool, sample: tuple[int, ...] | None
) -> Evaluation:
    """Returns several passes as one evaluation, with a gradient where all passes are there."""
    sums = tuple(nats for one in passes for nats in one.nll_sums)
    counts = tuple(count for one in passes for count in one.token_counts)
    gradient = None
    if is_whole and passes[-1].gradient is not None:
        parts = [one.gradient for one in passes if one.gradient is not None]
        by_factor = math.fsum(part.attention_factor for part in parts)
        gradient = Gradient(np.sum([part.rescale for part in parts], axis=0), by_factor)
    cost = sum(one.cost_tokens for one in passes)
    rungs = tuple(nats for one in passes for nats in one.rungs)
    return Evaluation(sums, counts, is_whole and sample is None, gradient, cost, sample, rungs)
