"""Whole documents to evaluate on, and their first n tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError

Tokens = NDArray[np.integer[Any]]
"""Token ids [tokens] of one document."""


@dataclass(frozen=True, eq=False)
class EvaluationDocument:
    """One whole document as its tokenizer encodes it.

    >>> EvaluationDocument("book", np.arange(100)).prefix(3)
    array([0, 1, 2])
    """

    name: str
    """The document's name in result rows."""
    tokens: Tokens
    """Its token ids, [total]."""

    def prefix(self, length: int) -> Tokens:
        """Returns the first `length` tokens; raises InputError where the document has fewer.

        Documents are neither dropped nor padded: numbers at different lengths are of the same ones.
        """
        if length < 2:
            raise InputError(
                "length", length, "needs at least 2 tokens: the first one is not predicted"
            )
        if len(self.tokens) < length:
            rule = (
                f"has {len(self.tokens)} tokens, fewer than the length {format_length(length)} "
                "asked for"
            )
            raise InputError("document", self.name, rule)
        return self.tokens[:length]


def check_documents(documents: Sequence[EvaluationDocument], lengths: Iterable[int]) -> None:
    """Raises InputError unless there are documents, with names of their own, of every length."""
    if not documents:
        raise InputError("documents", 0, "at least one document is needed")
    names = [document.name for document in documents]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                "document",
                name,
                "two documents have this name; result rows could not tell them apart",
            )
    for length in lengths:
        for document in documents:
            document.prefix(length)


def documents_sha256(documents: Iterable[EvaluationDocument]) -> str:
    """Returns one hexadecimal SHA-256 of the lengths and tokens of all documents, in order.

    Tokens are hashed as little-endian int64, so that their dtype in memory does not count.
    """
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document.tokens).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(document.tokens, dtype="<i8").tobytes())
    return digest.hexdigest()
