"""The cost of a search's evaluations: tokens, floating-point operations and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_longrope.artifacts.journal import JournalEntry
from megatron_longrope.artifacts.records import Count, FileRecord

if TYPE_CHECKING:
    from typing import Self

BACKWARD_OVER_FORWARD = 1.5
"""Operations of a backward pass over those of a forward pass, without gradients of the weights.

The products with the weights are computed once more, those of attention two and a half times.
"""


class SearchCost(FileRecord):
    """The cost of some evaluations."""

    evaluations: Count
    tokens: Count
    """Tokens that went through the model forward."""
    backward_tokens: Count
    """How many of the tokens went through the model backward too."""
    flops: float
    """Floating-point operations of all passes."""
    seconds: float
    """Wall time."""

    @classmethod
    def of(cls, entries: Sequence[JournalEntry], flops_per_token: float) -> Self:
        """Returns the cost of `entries` on a model of `flops_per_token` operations forward."""
        tokens = sum(entry.cost_tokens for entry in entries)
        backward_tokens = sum(entry.cost_tokens for entry in entries if entry.has_gradient)
        return cls(
            evaluations=len(entries),
            tokens=tokens,
            backward_tokens=backward_tokens,
            flops=flops_per_token * forward_equivalent(tokens, backward_tokens),
            seconds=sum(entry.seconds for entry in entries),
        )


def forward_equivalent(tokens: int, backward_tokens: int) -> float:
    """Returns the tokens whose forward pass takes as many operations as these passes together."""
    return tokens + BACKWARD_OVER_FORWARD * backward_tokens
