"""The search objective: candidates in, perplexity on long documents out, spread over the
data-parallel groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
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
from megatron_longrope.evaluation.tasks.base import DEFAULT_BATCH_TOKENS
from megatron_longrope.model import LongRopeModel, score_documents, score_with_gradient
from megatron_longrope.rope import FactorOrigin, RopeFactors, RopeGeometry
from megatron_longrope.search.types import Terms


class Pass(NamedTuple):
    """Documents that share a forward pass; of a rung of the ladder, or of what counts (None)."""

    documents: list[int]
    rung: int | None = None


class PerplexityObjective:
    """Scores candidates on a model: called with candidates, it returns their evaluations, the same
    on every rank.

    Each data-parallel group evaluates candidates with its own TP×PP×CP, and takes the next as soon
    as it is free; where there are fewer candidates than groups, they share the passes of each.
    After a call the model has the factors of the last candidate asked, on every rank: whoever goes
    on with the model sets the factors wanted.

    An evaluation has an entry per document, parts in order. Token counts are those of the counted
    predictions. Its loss is Σ_p w_p·(Σ nll / Σ tokens of part p) / Σ_p w_p: to that end each part's
    sums are multiplied by a constant, `scales[p]`, which is exactly 1 where there is one part. So
    with one part the sums are plain nats. The gradient of a sample is of its share of that loss,
    times documents over sampled documents: on average the gradient of all.

    `ladder`: documents of shorter lengths, a list per length, scored before all others for early
    stopping's sake. They count nothing, and are left out where nothing can be stopped: for
    gradients and samples.

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
        method: str = "search",
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        ladder: Sequence[Sequence[Tokens]] = (),
    ) -> None:
        model.backend.check_searching()
        self.model = model
        self.parts = as_parts(documents, last_fraction)
        self.target_length = target_length
        self.origin = FactorOrigin(method=method)
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
        """Entries of an evaluation: the documents of all parts."""
        return len(self._documents)

    @property
    def document_tokens(self) -> int:
        """Tokens of all documents, without the ladder's."""
        return sum(len(tokens) for tokens in self._documents)

    @property
    def cost_tokens(self) -> int:
        """Tokens that go through the model for one candidate that is not stopped early."""
        return sum(len(tokens) for texts in (*self._ladder, self._documents) for tokens in texts)

    def __call__(
        self, candidates: Sequence[Candidate], terms: Terms | None = None
    ) -> list[Evaluation]:
        """Returns the evaluation of each candidate, in the order asked; all ranks come with the
        same candidates."""
        return list(self.stream(candidates, terms or Terms()))

    def stream(self, candidates: Sequence[Candidate], terms: Terms) -> Iterator[Evaluation]:
        """Yields what `__call__` returns, each evaluation as soon as it and all before it are
        there."""
        if len(candidates) >= self.model.runtime.data_parallel_size:
            whole = self._dispatcher.in_order(
                len(candidates), lambda i: self._to_json(candidates[i], terms)
            )
            yield from (Evaluation.from_json(result) for result in whole)
        else:
            yield from self._stream_passes(candidates, terms)
        if (
            candidates
        ):  # groups ended with different ones; ranks that disagree about factors would go unnoticed
            self._set_factors(candidates[-1])

    def without_ladder(self) -> PerplexityObjective:
        """Returns the same objective for candidates that are all to be scored at length."""
        plain = copy(self)
        plain._ladder, plain._passes = [], [one for one in self._passes if one.rung is None]
        return plain

    def evaluate(self, candidate: Candidate, terms: Terms | None = None) -> Evaluation:
        """Returns the evaluation of one candidate by this rank's own model-parallel group alone."""
        asked = terms or Terms()
        passes = self._passes_of(asked)
        return self._joined(
            (self._pass(candidate, one, asked) for one in passes), len(passes), asked
        )

    def _to_json(self, candidate: Candidate, terms: Terms) -> dict[str, Any]:
        return self.evaluate(candidate, terms).to_json()

    def _stream_passes(self, candidates: Sequence[Candidate], terms: Terms) -> Iterator[Evaluation]:
        """The same evaluations, each candidate's passes spread over the groups."""
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
        """All passes, or those over the documents asked for."""
        if terms.sample is not None:
            lengths = [len(self._documents[document]) for document in terms.sample]
            shared = _passes(lengths, self.max_batch_tokens)
            return [Pass([terms.sample[i] for i in one.documents]) for one in shared]
        return [one for one in self._passes if one.rung is None or not terms.gradient]

    def _pass(self, candidate: Candidate, one: Pass, terms: Terms) -> Evaluation:
        """One forward pass, and a backward pass where gradients are asked for, over documents that
        share it."""
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
        scores = score_documents(self.model, texts, max_batch_tokens=self.max_batch_tokens)
        nats = math.fsum(float(np.asarray(score.nll).sum(dtype=np.float64)) for score in scores)
        per_token = nats / sum(len(text) - 1 for text in texts)
        return Evaluation((), (), cost_tokens=sum(map(len, texts)), rungs=(per_token,))

    @cached_property
    def _num_counted(self) -> int:
        return sum(int(mask.sum()) for mask in self._masks)

    def _joined(self, passes: Iterable[Evaluation], num_passes: int, terms: Terms) -> Evaluation:
        """All passes as one evaluation, or those up to where the rule stops it: the same whoever
        did how many."""
        done: list[Evaluation] = []
        for one in passes:
            done.append(one)
            is_whole = len(done) == num_passes
            so_far = _sum_of(done, is_whole, terms.sample)
            if not is_whole and terms.judge is not None and terms.judge(so_far):
                break
        return so_far

    def _set_factors(self, candidate: Candidate) -> None:
        self.model.set_factors(
            factors_of(candidate, self.model.geometry, self.target_length, self.origin)
        )

    @cached_property
    def scored_parts(self) -> tuple[ScoredPart, ...]:
        """What an evaluation's documents are, part by part, for margins and separate losses."""
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
        """Whether exp(loss) is the perplexity of a text: parts mixed by weight have none."""
        return len(self.parts) == 1 and not self.parts[0].is_generated

    def part_losses(self, evaluation: Evaluation) -> tuple[PartLoss, ...]:
        """Returns nats per counted token of each part, from a completed evaluation this objective
        made."""
        return part_losses(evaluation, self.scored_parts)

    def identity(self) -> dict[str, Any]:
        """Returns JSON values that say what is measured, for fingerprints: sizes, weights, target,
        batching. Which texts is `documents_sha256`'s to say, which weights `model_identity`'s.

        `generated_sha256` is there where that does not say it all: of every token and every mask,
        where documents were generated or something else than the end of a document counts.
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
    """Returns a candidate's λ, n̂ and t as factors of `geometry` for `target_length` tokens;
    origin: method "search"."""
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
    """Which documents share a forward pass: neighbours, up to `max_tokens` a pass (a longer one
    goes alone)."""
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
