"""Makes synthetic retrieval documents to train on.

There are three kinds: a passkey hidden in filler text, lists of keys and values with questions, and
passages repeated over and over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.documents import TokenDocument
from megatron_longrope.data import (
    Filler,
    TextTokenizer,
    classic_filler,
    key_value_document,
    passkey_document,
)
from megatron_longrope.errors import InputError

_TOKENS_PER_QUESTION = 48
"""Tokens of a line, its question and another line; short lists get few questions by it."""
_MOST_QUESTIONS = 4
"""Most questions of a list."""
_PROBES = 8
"""Documents of each kind made to see whether a length suffices: keys differ in their tokens."""
_SHORTEST_PASSAGE = 4
"""Least tokens of a repeated passage."""
_SHORTEST_KEY = 5
"""Least digits of a passkey."""


@dataclass(frozen=True)
class RetrievalMix:
    """Shares of the kinds of documents; what the first two shares leave are passkeys.

    Raises InputError for shares that are not between 0 and 1, that exceed 1 together, and for a
    longest key below 5.
    """

    key_value_share: float = 0.5
    """Share of documents that are lists of keys and values."""
    copy_share: float = 0.0
    """Share of documents that repeat a random passage.

    They are the simplest task that needs attention by content, which small models learn there
    first.
    """
    text_filler_share: float = 0.5
    """Share of passkeys hidden in other fillers than the first."""
    longest_key: int = _SHORTEST_KEY
    """Most digits of a passkey; the least are 5."""

    def __post_init__(self) -> None:
        for name in ("key_value_share", "copy_share", "text_filler_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(name, getattr(self, name), "must be between 0 and 1")
        if self.key_value_share + self.copy_share > 1:
            raise InputError(
                "copy_share", self.copy_share, "with key_value_share it must not exceed 1"
            )
        if self.longest_key < _SHORTEST_KEY:
            raise InputError("longest_key", self.longest_key, f"must be {_SHORTEST_KEY} or more")


def retrieval_documents(
    tokenizer: TextTokenizer,
    count: int,
    min_length: int,
    max_length: int,
    seed: int,
    fillers: Sequence[Filler] = (),
    mix: RetrievalMix = RetrievalMix(),
) -> list[TokenDocument]:
    """Returns `count` documents of random lengths, each ended by the tokenizer's end token.

    Each begins as the tokenizer begins documents: with a BOS where it adds one by itself.

    Key–value lists have 1 to 4 questions; passkeys lie at a uniform depth in their filler. Document
    i depends on (seed, i) alone. Raises InputError for lengths too short for a question.

    Args:
        tokenizer: encodes the documents.
        count: number of documents.
        min_length: least tokens of a document, the end token included.
        max_length: most tokens; lengths are uniform between the two.
        seed: fixes all random draws.
        fillers: texts to hide passkeys in; none stands for the classic sentences.
        mix: shares of the kinds of documents.
    """
    if not 0 < min_length <= max_length:
        raise InputError(
            "min_length", min_length, f"must lie between 1 and max_length, {max_length}"
        )
    choices = tuple(fillers) or (classic_filler(tokenizer),)
    return [
        _document(tokenizer, number, min_length, max_length, seed, choices, mix)
        for number in range(count)
    ]


def check_retrieval_lengths(
    tokenizer: TextTokenizer, min_length: int, max_length: int, mix: RetrievalMix
) -> None:
    """Raises InputError where a document that `retrieval_documents` may draw does not fit.

    Every kind of document in `mix` is made at the least length, and a list also at each length from
    which on it may have one question more.
    """
    end, prefix = _end(tokenizer), tokenizer.document_prefix()
    shortest = min_length - len(end)
    with_passkeys = mix.key_value_share + mix.copy_share < 1
    try:
        for seed in range(_PROBES):
            if with_passkeys:
                passkey_document(
                    tokenizer, shortest, 0.5, seed, key_digits=mix.longest_key, prefix=prefix
                )
            for questions in range(1, 1 + (_MOST_QUESTIONS if mix.key_value_share else 0)):
                length = max(shortest, questions * _TOKENS_PER_QUESTION if questions > 1 else 1)
                if length <= max_length - len(end):
                    key_value_document(tokenizer, length, seed, questions, prefix=prefix)
    except InputError as error:
        raise InputError("min_length", min_length, error.rule) from error
    if mix.copy_share and shortest - len(prefix) < _SHORTEST_PASSAGE:
        raise InputError(
            "min_length", min_length, f"too short to repeat {_SHORTEST_PASSAGE} tokens"
        )


def _end(tokenizer: TextTokenizer) -> list[int]:
    return [] if tokenizer.eos_id is None else [tokenizer.eos_id]


def _document(
    tokenizer: TextTokenizer,
    number: int,
    min_length: int,
    max_length: int,
    seed: int,
    fillers: Sequence[Filler],
    mix: RetrievalMix,
) -> TokenDocument:
    end = _end(tokenizer)
    prefix = tokenizer.document_prefix()
    random = np.random.default_rng([seed, number])
    length = int(random.integers(min_length, max_length + 1)) - len(end)
    inner_seed, kind = int(random.integers(2**62)), random.random()
    if kind < mix.key_value_share:
        name = "key-value"
        num_questions = int(
            random.integers(1, 1 + min(_MOST_QUESTIONS, max(1, length // _TOKENS_PER_QUESTION)))
        )
        tokens = key_value_document(
            tokenizer, length, inner_seed, num_questions, prefix=prefix
        ).tokens
    elif kind < mix.key_value_share + mix.copy_share:
        copies = _copy(tokenizer, length - len(prefix), random)
        name, tokens = "copy", np.concatenate((np.array(prefix, dtype=np.int64), copies))
    else:
        name, filler = "passkey", fillers[0]
        if len(fillers) > 1 and random.random() < mix.text_filler_share:
            filler = fillers[int(random.integers(1, len(fillers)))]
        depth = float(random.random())
        num_digits = int(random.integers(_SHORTEST_KEY, mix.longest_key + 1))
        tokens = passkey_document(
            tokenizer, length, depth, inner_seed, filler, num_digits, prefix
        ).tokens
    return TokenDocument.generated(
        f"{name}-{seed}-{number}", np.concatenate((tokens, np.array(end, dtype=np.int64)))
    )


def _copy(tokenizer: TextTokenizer, length: int, random: np.random.Generator) -> np.ndarray:
    """Returns [length] tokens: a passage of random tokens, or of random digits, repeated."""
    size = int(random.integers(_SHORTEST_PASSAGE, max(_SHORTEST_PASSAGE + 1, length // 2)))
    encoded = [tokenizer.encode(str(digit), add_special_tokens=False) for digit in range(10)]
    digits = np.array([int(tokens[-1]) for tokens in encoded])
    # tokens 0 and 1 are the special ones of `train_bpe`
    choices = digits if random.random() < 0.25 else np.arange(2, tokenizer.vocab_size)
    return np.resize(random.choice(choices, size), length)
