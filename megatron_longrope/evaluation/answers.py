"""Exact match of the answers that documents end with, and the greedy decoding that its teacher
forcing stands for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.data.passkey import PasskeyDocument
from megatron_longrope.evaluation.documents import Tokens
from megatron_longrope.evaluation.spread import spread
from megatron_longrope.evaluation.tasks.base import DEFAULT_BATCH_TOKENS
from megatron_longrope.model import LongRopeModel, document_logits, score_documents
from megatron_longrope.rope import FactorSet


def answers_retrieved(
    model: LongRopeModel,
    documents: Sequence[PasskeyDocument],
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> NDArray[np.bool_]:
    """Returns [documents]: whether each answer token is the arg-max given the true tokens before it
    (ties: lowest id).

    This holds exactly when greedy decoding gives the answer: up to the first wrong token both see
    the same prefix, and after one neither counts as correct.
    """
    per_unit = max(
        1, max_batch_tokens // max((len(document.tokens) for document in documents), default=1)
    )
    units = [documents[start : start + per_unit] for start in range(0, len(documents), per_unit)]

    def retrieved(unit: Sequence[PasskeyDocument]) -> list[bool]:
        scores = score_documents(
            model, [document.tokens for document in unit], max_batch_tokens=max_batch_tokens
        )
        return [
            bool(score.correct[document.answer_start - 1 :].all())
            for document, score in zip(unit, scores, strict=True)
        ]

    return np.array(
        [hit for unit in spread(model.runtime, units, retrieved) for hit in unit], dtype=np.bool_
    )


def greedy_decode(model: LongRopeModel, prompt: Tokens, num_tokens: int) -> NDArray[np.int64]:
    """Returns [num_tokens] tokens after `prompt`, each the arg-max (ties: lowest id) of a pass over
    all before it.

    Every pass uses the factors that serve the final length: rotations of two factor sets must not
    meet in one answer. It holds whole logits and repeats the prompt for each token: for tests and
    short inputs. The model's factor set is the same afterwards as before.
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
    """Returns the seed of one document, whichever other lengths, depths and trials are asked for
    beside it."""
    words = np.random.SeedSequence([seed, length, round(depth * 1_000_000), trial]).generate_state(
        1, np.uint64
    )
    return int(words[0])
