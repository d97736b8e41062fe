"""The objective that the candidates of a search are scored by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    parts = [
        ObjectivePart.last_part(
            _stretches(chosen, length, config.windows_per_document), config.last_fraction
        )
    ]
    for other, weight in config.mixture.items():
        stretches = _stretches(chosen, other, config.windows_per_document)
        parts.append(ObjectivePart.last_part(stretches, config.last_fraction, weight))
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


def _stretches(documents: Sequence[EvaluationDocument], length: int, count: int) -> list[Tokens]:
    """Returns the first `count` stretches of `length` tokens of each document."""
    return [
        document.prefix(length * count)[start : start + length]
        for document in documents
        for start in range(0, length * count, length)
    ]


def judged_on(objective: PerplexityObjective, documents_sha256: str) -> dict[str, Any]:
    """Returns JSON values that change whenever evaluations would: for the header of a journal.

    They describe the documents, what counts of them, and the model. All ranks come here together.
    """
    model = model_identity(objective.model)
    return {**objective.identity(), "documents_sha256": documents_sha256, "model": model}
