"""What it takes to score candidates on some documents, in tokens and floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_longrope.artifacts.evaluations import Evaluation
from megatron_longrope.model.engine.settings import Recompute
from megatron_longrope.model.flops import PassFlops
from megatron_longrope.model.shape import ModelShape


@dataclass(frozen=True)
class ScoringCost:
    """The cost of evaluations on documents of known lengths, from what an evaluation holds.

    Every document that was scored counts by its own length, whether it is part of the loss or of
    the ladder, and with a backward pass where there is a gradient.

    >>> cost = ScoringCost(model.shape, "none", (100, 50))
    >>> whole = Evaluation(nll_sums=(200.0, 100.0), token_counts=(99, 49))
    >>> cost.tokens(whole), cost.forward_equivalents(whole)
    (150, 1.0)
    """

    shape: ModelShape
    recompute: Recompute
    """Which activations a backward pass computes again."""
    lengths: tuple[int, ...]
    """Tokens of each document."""
    ladder: tuple[tuple[int, ...], ...] = ()
    """Tokens of each document of each rung."""

    @cached_property
    def whole_flops(self) -> float:
        """Operations of a forward pass over all documents, the unit of `forward_equivalents`."""
        return sum(map(self.shape.forward_flops, self.lengths))

    def tokens(self, evaluation: Evaluation) -> int:
        """Returns the tokens that went through the model forward."""
        return sum(self._forward_only(evaluation)) + sum(self._scored(evaluation))

    def flops(self, evaluation: Evaluation) -> float:
        """Returns the operations of all passes of an evaluation, recomputation included."""
        ladder = sum(map(self.shape.forward_flops, self._forward_only(evaluation)))
        if evaluation.gradient is None:
            return ladder + sum(map(self.shape.forward_flops, self._scored(evaluation)))
        return ladder + sum(
            PassFlops(self.shape, length).with_backward("factors", self.recompute)
            for length in self._scored(evaluation)
        )

    def forward_equivalents(self, evaluation: Evaluation) -> float:
        """Returns the operations of an evaluation as so many forward passes over all documents.

        It is what the evaluation says itself, or in journals of before, which do not, what it would
        take now.
        """
        if evaluation.forward_equivalents is not None:
            return evaluation.forward_equivalents
        return self.flops(evaluation) / self.whole_flops

    def _scored(self, evaluation: Evaluation) -> list[int]:
        numbers = evaluation.sample
        if numbers is None:
            numbers = tuple(range(len(evaluation.nll_sums)))
        return [self.lengths[number] for number in numbers]

    def _forward_only(self, evaluation: Evaluation) -> list[int]:
        rungs = self.ladder[: len(evaluation.rungs)]
        return [length for rung in rungs for length in rung]
