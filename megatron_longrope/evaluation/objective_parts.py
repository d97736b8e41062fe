"""The parts of a search objective: documents, which predictions count, and weights in the loss."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.data.passkey import PasskeyDocument
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.documents import Tokens

Counted = NDArray[np.bool_]
"""Marks [tokens − 1] of the predictions of one document that count."""


@dataclass(frozen=True, eq=False)
class ObjectivePart:
    """Documents of one kind, which of their predictions count, and their weight in the loss.

    Raises InputError for an empty part, for a mask that has another size or marks nothing, and for
    a weight that is not above 0.
    """

    documents: tuple[Tokens, ...]
    counted: tuple[Counted, ...]
    """One mask [tokens − 1] per document; entry i is of the prediction of token i + 1."""
    weight: float = 1.0
    name: str = "text"
    """What the part is called where losses of parts are reported one by one."""
    texts: tuple[Hashable, ...] = ()
    """The text each document was cut from, in this part or another; by default one of its own."""
    is_generated: bool = False
    """Whether the documents were generated, and the answers in them are what counts."""

    def __post_init__(self) -> None:
        if not self.documents or len(self.counted) != len(self.documents):
            raise InputError(
                "objective documents",
                len(self.documents),
                f"one or more, got {len(self.counted)} masks",
            )
        if self.texts and len(self.texts) != len(self.documents):
            raise InputError(
                "objective texts", len(self.texts), f"of {len(self.documents)} documents"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError("objective weight", self.weight, "must be finite and above 0")
        for index, (tokens, mask) in enumerate(zip(self.documents, self.counted, strict=True)):
            if len(tokens) < 2 or mask.shape != (len(tokens) - 1,) or not mask.any():
                rule = f"needs 1 counted prediction or more, marked by [{len(tokens) - 1}] booleans"
                raise InputError(
                    f"objective documents[{index}]",
                    f"{len(tokens)} tokens, mask {mask.shape}",
                    rule,
                )

    @classmethod
    def last_part(
        cls,
        documents: Sequence[Tokens],
        fraction: float = 1.0,
        weight: float = 1.0,
        *,
        name: str = "text",
        texts: Sequence[Hashable] = (),
    ) -> ObjectivePart:
        """Returns a part that counts the predictions on the last `fraction` of each document.

        Args:
            documents: their tokens.
            fraction: share of each document that counts; 1: all of it.
            weight: of the part in the loss, beside those of the others.
            name: what it is called where parts are reported one by one.
            texts: which text each document was cut from.
        """
        if not 0 < fraction <= 1:
            raise InputError("last_fraction", fraction, "must be above 0 and at most 1")
        masks = []
        for tokens in documents:
            first = len(tokens) - max(1, round(fraction * len(tokens)))
            masks.append(np.arange(1, len(tokens)) >= first)
        return cls(tuple(documents), tuple(masks), weight, name, tuple(texts))

    @classmethod
    def answers(cls, documents: Sequence[PasskeyDocument], weight: float = 1.0) -> ObjectivePart:
        """Returns a part that counts the answer tokens of retrieval documents only."""
        masks = tuple(
            np.arange(1, len(document.tokens)) >= document.answer_start for document in documents
        )
        tokens = tuple(document.tokens for document in documents)
        return cls(tokens, masks, weight, "answers", is_generated=True)


def as_parts(
    documents: Sequence[Tokens] | Sequence[ObjectivePart], last_fraction: float
) -> tuple[ObjectivePart, ...]:
    parts = [item for item in documents if isinstance(item, ObjectivePart)]
    if not parts:
        return (ObjectivePart.last_part([np.asarray(item) for item in documents], last_fraction),)
    if len(parts) != len(documents):
        raise InputError(
            "objective documents", len(documents), "either documents or parts, not both"
        )
    if last_fraction != 1:
        raise InputError("last_fraction", last_fraction, "with parts, each says itself what counts")
    return tuple(parts)


def ends_only(part: ObjectivePart) -> bool:
    """Returns whether of every document an unbroken end counts: its size then says which."""
    return all(mask[len(mask) - int(mask.sum()) :].all() for mask in part.counted)


def content_sha256(parts: Sequence[ObjectivePart]) -> str:
    """Returns one hexadecimal digest of all parts' tokens (little-endian int64), masks, lengths."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part.documents).to_bytes(8, "little"))
        for tokens, mask in zip(part.documents, part.counted, strict=True):
            digest.update(len(tokens).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(tokens, dtype="<i8").tobytes())
            digest.update(np.ascontiguousarray(mask, dtype=np.uint8).tobytes())
    return digest.hexdigest()


def part_scales(parts: Sequence[ObjectivePart]) -> tuple[float, ...]:
    """Returns c_p with Σ_p c_p·nll_p / Σ_p tokens_p = Σ_p w_p·(nll_p / tokens_p) / Σ_p w_p: exactly
    1 for a single part."""
    counts = [sum(int(mask.sum()) for mask in part.counted) for part in parts]
    weights = math.fsum(part.weight for part in parts)
    return tuple(
        part.weight / weights * (sum(counts) / count)
        for part, count in zip(parts, counts, strict=True)
    )
