"""What evaluations of a search cost: tokens, floating-point operations and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_longrope.artifacts.journal import JournalEntry
from megatron_longrope.artifacts.records import Count, FileRecord

if TYPE_CHECKING:
    from typing import Self

BACKWARD_OVER_FORWARD = 1.5
"""Operations of a backward pass over those of a forward one, without gradients of weights: the
products with weights once more, attention two and a half times."""


class SearchCost(FileRecord):
    """What evaluations took.

    `tokens` went through the model forward, `backward_tokens` of them backward too; `flops` are
    floating-point operations, `seconds` wall time.
    """

    evaluations: Count
    tokens: Count
    backward_tokens: Count
    flops: float
    seconds: float

    @classmethod
    def of(cls, entries: Sequence[JournalEntry], flops_per_token: float) -> Self:
        """Returns the sum over `entries` on a model of so many operations per token forward."""
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
    """Returns the tokens forward that take as many operations as these forward and backward."""
    return tokens + BACKWARD_OVER_FORWARD * backward_tokens
