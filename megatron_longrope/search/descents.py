"""Searchers with gradient descents in them: which point of which descent a round is, and on which
documents."""

from __future__ import annotations

from megatron_longrope.search.descent import Descent, DescentSettings
from megatron_longrope.search.rounds import Proposal, RoundSearcher, SettingsT


class DescendingSearcher(RoundSearcher[SettingsT]):
    """A searcher with descents: after the seeds, rounds from `first_descent` on hold a point each.

    Needs evaluations that come with gradients where `asks_gradient` says so, on the documents in
    `sample`. A subclass calls `plan_descents` in its `__init__`.
    """

    def plan_descents(self, descent: DescentSettings, cycles: int) -> None:
        """Prepares `cycles` descents, each from the best candidate so far."""
        self._descent_settings = descent
        self._plan = descent.plan(self.task.num_documents)
        self._num_steps = descent.num_steps(self.task.num_documents)
        self._descent: Descent | None = None
        self.num_descent_rounds = cycles * len(self._plan)
        self.first_descent: int | None = 1
        """None: not yet known."""

    @property
    def descent_round(self) -> int:
        """This round counted from the first of the descents on; below 0 before it."""
        return -1 if self.first_descent is None else self.round_number - self.first_descent

    @property
    def asks_gradient(self) -> bool:
        """At every step of a descent."""
        return self._is_descending and self._plan[self._place] == "step"

    @property
    def sample(self) -> tuple[int, ...] | None:
        """The documents of a descent's step; None, all of them, for everything else."""
        if not self.asks_gradient:
            return None
        cycle = self.descent_round // len(self._plan)
        step = cycle * self._num_steps + self._plan[: self._place].count("step")
        return self._descent_settings.sample(step, self.task.num_documents, self.seed)

    def descend(self) -> list[Proposal]:
        """Returns the point of this round; none where the descent has no point with a loss to go on
        from."""
        if self._place == 0:
            if self.best is None:
                return []
            candidate, evaluation = self.best
            self._descent = Descent(self.space, candidate, self._descent_settings, self._num_steps)
            if (
                evaluation.gradient is not None
            ):  # known already: no need to score the starting point again
                self._descent.advance(evaluation)
        else:
            assert self._descent is not None
            told = self.history[-1].evaluation
            if self._plan[self._place - 1] == "step" and not self._descent.advance(told):
                return []
        assert self._descent is not None
        return [Proposal(self._descent.candidate, self._plan[self._place])]

    @property
    def _is_descending(self) -> bool:
        return 0 <= self.descent_round < self.num_descent_rounds

    @property
    def _place(self) -> int:
        """Of this round in its descent."""
        return self.descent_round % len(self._plan)
