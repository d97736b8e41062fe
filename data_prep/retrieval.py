"""Synthetic retrieval documents to train on: a pass key in filler, and lists of keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_prep.documents import TokenDocument
from megatron_longrope.data import Filler, TextTokenizer, classic_filler, key_value_document, passkey_document
from megatron_longrope.errors import InputError

_TOKENS_PER_QUESTION = 48
"""Room for a line, its question and another line, so that short lists get few questions."""


def retrieval_documents(
    tokenizer: TextTokenizer,
    count: int,
    min_length: int,
    max_length: int,
    seed: int,
    fillers: Sequence[Filler] = (),
    key_value_share: float = 0.5,
) -> list[TokenDocument]:
    """Returns `count` documents of lengths uniform in [`min_length`, `max_length`] tokens, ended by the end token.

    A share of `key_value_share` are key–value lists with 1 to 4 questions, the others hide a pass key at a uniform
    depth in one of `fillers` (the classic sentences by default). Document i depends on (seed, i) alone. Raises
    InputError for a share outside 0 … 1 and for lengths too short to hold a question.
    """
    if not 0 <= key_value_share <= 1:
        raise InputError("key_value_share", key_value_share, "must be between 0 and 1")
    if not 0 < min_length <= max_length:
        raise InputError("min_length", min_length, f"must lie between 1 and max_length, {max_length}")
    choices = tuple(fillers) or (classic_filler(tokenizer),)
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    documents = []
    for number in range(count):
        random = np.random.default_rng([seed, number])
        length = int(random.integers(min_length, max_length + 1)) - len(end)
        inner_seed = int(random.integers(2**62))
        if random.random() < key_value_share:
            kind = "key-value"
            num_questions = int(random.integers(1, 1 + min(4, max(1, length // _TOKENS_PER_QUESTION))))
            document = key_value_document(tokenizer, length, inner_seed, num_questions)
        else:
            kind, filler = "passkey", choices[int(random.integers(len(choices)))]
            document = passkey_document(tokenizer, length, float(random.random()), inner_seed, filler)
        tokens = np.concatenate((document.tokens, np.array(end, dtype=np.int64)))
        documents.append(TokenDocument.generated(f"{kind}-{seed}-{number}", tokens))
    return documents
