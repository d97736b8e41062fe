"""The objective that the candidates of a search are scored by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_longrope.artifacts.evaluations import Evaluation
from megatron_longrope.atomic import finite_or_none
from megatron_longrope.config import format_length
from megatron_longrope.data import TextTokenizer, classic_filler, passkey_document
from megatron_longrope.evaluation import (
    EvaluationDocument,
    ObjectivePart,
    PerplexityObjective,
    Tokens,
)
from megatron_longrope.model import LongRopeModel
from megatron_longrope.model.fingerprint import model_identity
from megatron_longrope.pipeline.recipe import SearchConfig

PASS_TOKENS = 2048
"""Documents share a forward pass up to so many tokens; a longer one has a pass to itself.

Passes are the units that data-parallel groups share and between which candidates are stopped early,
so that there should be several."""


def search_objective(
    model: LongRopeModel,
    documents: Sequence[EvaluationDocument],
    tokenizer: TextTokenizer,
    config: SearchConfig,
    length: int,
) -> PerplexityObjective:
    """Returns the objective of a search for `length` tokens.

    It scores documents at `length` and, as the settings say, at the lengths of `mixture` and by the
    answers of passkey documents.

    Args:
        model: The model to score on.
        documents: Documents to search on, of which the first `num_documents` are taken.
        tokenizer: Encodes passkey documents.
        config: The settings of the search.
        length: Tokens to search for.
    """
    chosen = documents[: config.num_documents]
    texts = [each.name for each in chosen for _ in range(config.windows_per_document)]
    parts = [
        ObjectivePart.last_part(
            _stretches(chosen, each, config.windows_per_document),
            config.last_fraction,
            weight,
            name=f"text at {format_length(each)}" if config.mixture else "text",
            texts=texts,
        )
        for each, weight in ((length, 1.0), *config.mixture.items())
    ]
    if config.retrieval_documents:
        filler, prefix = classic_filler(tokenizer), tokenizer.document_prefix()
        keys = [
            passkey_document(
                tokenizer,
                length,
                number / config.retrieval_documents,
                config.seed * 1000 + number,
                filler,
                prefix=prefix,
            )
            for number in range(config.retrieval_documents)
        ]
        parts.append(ObjectivePart.answers(keys, config.retrieval_weight))
    rungs = config.early_stopping.ladder if config.early_stopping else ()
    ladder = [[document.prefix(rung) for document in chosen] for rung in rungs]
    return PerplexityObjective(
        model, parts, target_length=length, max_batch_tokens=max(length, PASS_TOKENS), ladder=ladder
    )


def held_out_objective(
    model: LongRopeModel,
    documents: Sequence[EvaluationDocument],
    config: SearchConfig,
    length: int,
) -> PerplexityObjective:
    """Returns what is measured on documents nobody searched on: their text at `length`, as much of
    its end as the search counts, and nothing besides."""
    tokens = [document.prefix(length) for document in documents]
    names = [document.name for document in documents]
    part = ObjectivePart.last_part(tokens, config.last_fraction, texts=names)
    return PerplexityObjective(
        model, [part], target_length=length, max_batch_tokens=max(length, PASS_TOKENS)
    )


def _stretches(documents: Sequence[EvaluationDocument], length: int, count: int) -> list[Tokens]:
    """Returns the first `count` stretches of `length` tokens of each document."""
    return [
        document.prefix(length * count)[start : start + length]
        for document in documents
        for start in range(0, length * count, length)
    ]


def loss_in_words(objective: PerplexityObjective, evaluation: Evaluation) -> dict[str, Any]:
    """Returns the `perplexity` of an evaluation, or the `score` of a mixture with its `parts`, as
    result records hold them; numbers that are not finite become None."""
    value = finite_or_none(evaluation.perplexity)
    if objective.is_perplexity:
        return {"perplexity": value}
    return {"perplexity": None, "score": value, "parts": objective.part_losses(evaluation)}


def judged_on(objective: PerplexityObjective, documents_sha256: str) -> dict[str, Any]:
    """Returns JSON values that change whenever evaluations would: for the header of a journal.

    They describe the documents, what counts of them, and the model. All ranks come here together.
    """
    model = model_identity(objective.model)
    return {**objective.identity(), "documents_sha256": documents_sha256, "model": model}
