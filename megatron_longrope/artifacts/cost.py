"""The cost of a search's evaluations: tokens, floating-point operations and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_longrope.artifacts.journal import JournalEntry
from megatron_longrope.artifacts.records import Count, FileRecord

if TYPE_CHECKING:
    from typing import Self

_BACKWARD_OF_BEFORE = 1.5
"""A backward pass over a forward one, for journals that do not say what their passes took."""


class SearchCost(FileRecord):
    """The cost of some evaluations."""

    evaluations: Count
    tokens: Count
    """Tokens that went through the model forward."""
    backward_tokens: Count
    """How many of the tokens went through the model backward too."""
    flops: float
    """Floating-point operations of all passes: forward, backward, and what is computed again."""
    seconds: float
    """Wall time."""

    @classmethod
    def of(cls, entries: Sequence[JournalEntry], flops: float) -> Self:
        """Returns the cost of `entries`, whose passes took `flops` operations in all."""
        return cls(
            evaluations=len(entries),
            tokens=sum(entry.cost_tokens for entry in entries),
            backward_tokens=sum(entry.cost_tokens for entry in entries if entry.has_gradient),
            flops=flops,
            seconds=sum(entry.seconds for entry in entries),
        )


def forward_equivalents(entry: JournalEntry, document_tokens: int) -> float:
    """Returns the cost of an evaluation in forward passes over all documents, from its entry alone.

    Journals of before do not hold it. For these it is estimated from tokens, `document_tokens` of
    which are in all documents.
    """
    booked = entry.evaluation.forward_equivalents
    if booked is not None:
        return booked
    passes = 1 + _BACKWARD_OF_BEFORE * entry.has_gradient
    return entry.cost_tokens * passes / document_tokens
