"""Gradient descent on λ and t from the best seed."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.search.descent import DescentSettings
from megatron_longrope.search.descents import DescendingSearcher
from megatron_longrope.search.options import SettingOption
from megatron_longrope.search.rounds import Proposal
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import SearchTask


class GradientSearch(DescendingSearcher[DescentSettings]):
    """The seeds, then one descent from the best of them.

    search = GradientSearch(space, DescentSettings(passes=30), [pi, yarn], 1, task)
    """

    name = "gradient"
    summary = "a gradient descent on λ and t from the best start"
    Settings = DescentSettings
    options = (
        SettingOption(
            "--passes",
            "passes over the documents, about three evaluations each  "
            f"[default: {DescentSettings().passes}]",
            lambda passes: {"passes": passes},
        ),
    )
    searches_start_tokens = False

    def __init__(
        self,
        space: SearchSpace,
        settings: DescentSettings,
        seeds: Sequence[Candidate],
        seed: int,
        task: SearchTask,
    ) -> None:
        super().__init__(space, settings, seeds, seed, task)
        self.plan_descents(settings, cycles=1)

    @classmethod
    def needs_gradients(cls, settings: DescentSettings) -> bool:
        """Whether evaluations with gradients are among those that `settings` lead to: always."""
        return True

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last; fewer only where no point has a loss."""
        return len(self.history) if self.finished else len(self.seeds) + self.num_descent_rounds

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, then one point of the descent at a time."""
        if self.round_number == 0:
            return [Proposal(seed, "seed") for seed in self.seeds]
        return self.descend() if self.descent_round < self.num_descent_rounds else []
