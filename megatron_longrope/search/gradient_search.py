"""Gradient descent on λ and t from the best seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.search.descent import DescentSettings
from megatron_longrope.search.descents import DescendingSearcher
from megatron_longrope.search.rounds import Proposal
from megatron_longrope.search.space import SearchSpace


class GradientSearch(DescendingSearcher):
    """The seeds, then one descent from the best of them.

    search = GradientSearch(space, DescentSettings(passes=30), seeds=[Candidate((8.0,) * 32)],
    seed=1, num_documents=5)
    """

    name = "gradient"

    def __init__(
        self,
        space: SearchSpace,
        settings: DescentSettings,
        seeds: Sequence[Candidate],
        seed: int,
        num_documents: int,
    ) -> None:
        super().__init__(space, settings, 1, seeds, seed, num_documents)
        self.settings = settings
        self.start()

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last; fewer only where no point has a loss."""
        return len(self.history) if self.finished else len(self.seeds) + self.num_descent_rounds

    def settings_json(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return self.settings.model_dump(mode="json")

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, then one point of the descent at a time."""
        if self.round_number == 0:
            return [Proposal(seed, "seed") for seed in self.seeds]
        return self.descend() if self.descent_round < self.num_descent_rounds else []
