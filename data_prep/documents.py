"""Documents on their way into a dataset, first as text, then as tokens."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from megatron_longrope.data import TextTokenizer
from megatron_longrope.errors import InputError

_BATCH = 64
"""Number of documents encoded at once: enough for all cores, few enough for memory."""


@dataclass(frozen=True)
class TextDocument:
    """A document as text, with the name it is known by."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class TokenDocument:
    """A document as token ids."""

    name: str
    tokens: np.ndarray
    """Token ids, [tokens] of integers."""
    sha256: str
    """SHA-256 of what the document was made from: its text, or its tokens if it was generated."""

    @classmethod
    def generated(cls, name: str, tokens: np.ndarray) -> TokenDocument:
        """Returns a document that never was text; its SHA-256 is that of its tokens as int64."""
        return cls(name, tokens, hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest())


@dataclass(frozen=True)
class FilterReport:
    """Names of the documents left out, by reason."""

    empty: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()


def filter_documents(
    documents: Iterable[TextDocument], drop_duplicates: bool = False
) -> tuple[list[TextDocument], FilterReport]:
    """Returns the documents that have text, and a report of those left out.

    With `drop_duplicates` only the first document of each text is kept.

    >>> texts = [TextDocument("a", "rose"), TextDocument("b", ""), TextDocument("c", "rose")]
    >>> kept, report = filter_documents(texts, drop_duplicates=True)
    >>> [document.name for document in kept], report.empty, report.duplicates
    (['a'], ('b',), ('c',))
    """
    kept: list[TextDocument] = []
    empty: list[str] = []
    duplicates: list[str] = []
    seen: set[str] = set()
    for document in documents:
        checksum = document.sha256
        if not document.text:
            empty.append(document.name)
        elif drop_duplicates and checksum in seen:
            duplicates.append(document.name)
        else:
            kept.append(document)
        seen.add(checksum)
    return kept, FilterReport(tuple(empty), tuple(duplicates))


def tokenize(
    documents: Iterable[TextDocument],
    tokenizer: TextTokenizer,
    add_bos: bool = False,
    end_token: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[TokenDocument]:
    """Returns every document as tokens; raises InputError where a document has none.

    Args:
        documents: the texts, in order.
        tokenizer: encodes them.
        add_bos: whether the tokenizer's start token begins every document.
        end_token: token id to end every document with; None adds none.
        on_progress: called now and then with the numbers of documents and tokens done.
    """
    result: list[TokenDocument] = []
    num_tokens = 0
    remaining = iter(documents)
    while batch := list(itertools.islice(remaining, _BATCH)):
        encoded = tokenizer.encode_documents([document.text for document in batch], add_bos)
        result += [
            _token_document(d, tokens, end_token) for d, tokens in zip(batch, encoded, strict=True)
        ]
        num_tokens += sum(map(len, encoded))
        if on_progress is not None:
            on_progress(len(result), num_tokens)
    return result


def _token_document(
    document: TextDocument, tokens: np.ndarray, end_token: int | None
) -> TokenDocument:
    if len(tokens) == 0:
        raise InputError("document", document.name, "the tokenizer makes no token of it")
    if end_token is not None:
        tokens = np.append(tokens, end_token)
    return TokenDocument(document.name, tokens, document.sha256)
