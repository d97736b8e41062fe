"""Exact match of the answers at the end of documents, by teacher forcing or greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.data.passkey import PasskeyDocument
from megatron_longrope.evaluation.documents import Tokens
from megatron_longrope.evaluation.exported import ExportedModel
from megatron_longrope.evaluation.spread import spread
from megatron_longrope.evaluation.tasks.base import DEFAULT_BATCH_TOKENS
from megatron_longrope.model import LongRopeModel, document_logits, score_documents
from megatron_longrope.rope import FactorSet


def answers_retrieved(
    model: LongRopeModel | ExportedModel,
    documents: Sequence[PasskeyDocument],
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> NDArray[np.bool_]:
    """Returns booleans [documents]: whether the model gives each document's answer exactly.

    An exported folder generates its answers token by token, as transformers does it. For our own
    model an answer is right if each of its tokens is the arg-max (ties: lowest id) given the
    true tokens before it: teacher forcing, one pass per document. That holds exactly when greedy
    decoding gives the answer: up to the first wrong token both see the same prefix, and after it
    neither counts as correct. All ranks come here together and return the same.
    """
    if isinstance(model, ExportedModel):
        return model.answers_retrieved(documents)
    longest = max((len(document.tokens) for document in documents), default=1)
    per_unit = max(1, max_batch_tokens // longest)
    units = [documents[start : start + per_unit] for start in range(0, len(documents), per_unit)]

    def retrieved(unit: Sequence[PasskeyDocument]) -> list[bool]:
        scores = score_documents(
            model, [document.tokens for document in unit], max_batch_tokens=max_batch_tokens
        )
        # entry i of `correct` is of token i + 1, the answer's first token is `answer_start`
        return [
            bool(score.correct[document.answer_start - 1 :].all())
            for document, score in zip(unit, scores, strict=True)
        ]

    return np.array(
        [hit for unit in spread(model.runtime, units, retrieved) for hit in unit], dtype=np.bool_
    )


def greedy_decode(model: LongRopeModel, prompt: Tokens, num_tokens: int) -> NDArray[np.int64]:
    """Returns the tokens [num_tokens] that greedy decoding appends to `prompt`.

    Each is the arg-max (ties: lowest id) of one pass over all tokens before it. Every pass uses the
    factors that serve the final length: rotations of two factor sets must not meet in one answer.
    Whole logits are held and the prompt is read again for each token, which suits tests and short
    inputs. Afterwards the model has its own factor set again.
    """
    before = model.factor_set
    model.set_factors(FactorSet.single(before.for_length(len(prompt) + num_tokens)))
    tokens = np.asarray(prompt, dtype=np.int64)
    try:
        for _ in range(num_tokens):
            best = int(document_logits(model, tokens)[-1].argmax())
            tokens = np.append(tokens, best)
    finally:
        model.set_factors(before)
    return tokens[len(prompt) :]


def trial_seed(seed: int, length: int, depth: float, trial: int) -> int:
    """Returns the seed of one generated document, from its own length, depth and trial alone.

    So the document is the same whichever other lengths, depths and trials are measured beside it.
    """
    words = np.random.SeedSequence([seed, length, round(depth * 1_000_000), trial]).generate_state(
        1, np.uint64
    )
    return int(words[0])
