"""Gradient descent on λ and t from the best seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_longrope.search.descent import Descent, DescentSettings
from megatron_longrope.search.rounds import Proposal, RoundSearcher
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import Candidate


class GradientSearch(RoundSearcher):
    """The seeds, then a descent from the best of them, one evaluation with its gradient a step, and its end point.

    Needs evaluations that come with gradients where `asks_gradient` says so.

        search = GradientSearch(space, DescentSettings(steps=30), seeds=[Candidate((8.0,) * 32)], seed=1)
    """

    name = "gradient"

    def __init__(self, space: SearchSpace, settings: DescentSettings, seeds: Sequence[Candidate], seed: int) -> None:
        super().__init__(space, seeds, seed)
        self.settings = settings
        self._descent: Descent | None = None
        self.start()

    @property
    def asks_gradient(self) -> bool:
        """In every round but the seeds' and the last."""
        return 0 < self.round_number <= self.settings.steps

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last; fewer only where no seed is usable."""
        return len(self.seeds) + self.settings.steps + 1 if not self.finished else len(self.history)

    def settings_json(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return self.settings.model_dump(mode="json")

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, then one point of the descent at a time."""
        if self.round_number == 0:
            return [Proposal(seed, "seed") for seed in self.seeds]
        if self.round_number == 1:
            if self.best is None:
                return []
            self._descent = Descent(self.space, self.best[0], self.settings)
            return [Proposal(self._descent.candidate, "step")]
        assert self._descent is not None
        if self.round_number > self.settings.steps + 1 or not self._descent.advance(self.history[-1].evaluation):
            return []
        return [Proposal(self._descent.candidate, "step" if self.asks_gradient else "end")]
