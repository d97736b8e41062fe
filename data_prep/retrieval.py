"""Synthetic retrieval documents to train on: a passkey in filler, lists of keys and values,
passages said twice."""

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
"""Room for a line, its question and another line, so that short lists get few questions."""
_SHORTEST_PASSAGE = 4
_SHORTEST_KEY = 5
"""Digits of a passkey, if not more."""


@dataclass(frozen=True)
class RetrievalMix:
    """Shares of the kinds; what is left are passkeys. `text_filler_share` of them hide in later
    fillers, and they have 5 to `longest_key` digits.

    Copies are a random passage said again and again: the plainest task that wants attention by
    content, on which small models learn it first. Raises InputError for shares that are no shares
    and for a longest key below 5.
    """

    key_value_share: float = 0.5
    copy_share: float = 0.0
    text_filler_share: float = 0.5
    longest_key: int = _SHORTEST_KEY

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
    """Returns `count` documents of lengths uniform in [`min_length`, `max_length`] tokens, begun as
    the tokenizer begins documents and ended by the end token.

    Key–value lists have 1 to 4 questions; passkeys lie at a uniform depth in one of `fillers` (by
    default the classic sentences alone). Document i depends on (seed, i) alone. Raises InputError
    for lengths too short for a question.
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


def _document(
    tokenizer: TextTokenizer,
    number: int,
    min_length: int,
    max_length: int,
    seed: int,
    fillers: Sequence[Filler],
    mix: RetrievalMix,
) -> TokenDocument:
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    prefix = tokenizer.document_prefix()
    random = np.random.default_rng([seed, number])
    length = int(random.integers(min_length, max_length + 1)) - len(end)
    inner_seed, kind = int(random.integers(2**62)), random.random()
    if kind < mix.key_value_share:
        name = "key-value"
        num_questions = int(random.integers(1, 1 + min(4, max(1, length // _TOKENS_PER_QUESTION))))
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
        depth, num_digits = (
            float(random.random()),
            int(random.integers(_SHORTEST_KEY, mix.longest_key + 1)),
        )
        tokens = passkey_document(
            tokenizer, length, depth, inner_seed, filler, num_digits, prefix
        ).tokens
    return TokenDocument.generated(
        f"{name}-{seed}-{number}", np.concatenate((tokens, np.array(end, dtype=np.int64)))
    )


def _copy(tokenizer: TextTokenizer, length: int, random: np.random.Generator) -> np.ndarray:
    """A passage of random tokens, or of random digits, said until [length] tokens are full."""
    size = int(random.integers(_SHORTEST_PASSAGE, max(_SHORTEST_PASSAGE + 1, length // 2)))
    digits = np.array(
        [int(tokenizer.encode(str(digit), add_special_tokens=False)[-1]) for digit in range(10)]
    )
    choices = digits if random.random() < 0.25 else np.arange(2, tokenizer.vocab_size)
    return np.resize(random.choice(choices, size), length)
