"""The base of searchers with gradient descents: what point of what descent each round is."""

from __future__ import annotations

from megatron_longrope.search.descent import Descent, DescentSettings
from megatron_longrope.search.rounds import Proposal, RoundSearcher, SettingsT


class DescendingSearcher(RoundSearcher[SettingsT]):
    """A searcher with gradient descents: from `first_descent` on, every round is a point of one.

    It needs evaluations with gradients where `asks_gradient` says so, on the documents in `sample`.
    A subclass calls `plan_descents` in its `__init__` and `descend` in its `next_round`.
    """

    def plan_descents(self, descent: DescentSettings, cycles: int) -> None:
        """Prepares `cycles` descents, each from the best candidate so far."""
        self._descent_settings = descent
        self._plan = descent.plan(self.task.num_documents)
        self._num_steps = descent.num_steps(self.task.num_documents)
        self._descent: Descent | None = None
        self.num_descent_rounds = cycles * len(self._plan)
        self.first_descent: int | None = 1
        """The round that is the first point of the first descent; None while it is not known."""

    @property
    def descent_round(self) -> int:
        """Number of the present round counted from the first descent on; negative before it."""
        return -1 if self.first_descent is None else self.round_number - self.first_descent

    @property
    def asks_gradient(self) -> bool:
        """Whether the present round is a step of a descent, which needs the gradient."""
        return self._is_descending and self._plan[self._place] == "step"

    @property
    def sample(self) -> tuple[int, ...] | None:
        """The documents of a step of a descent; None, which means all, for every other round."""
        if not self.asks_gradient:
            return None
        # steps are counted through all descents, so that a later one goes through other orders
        cycle = self.descent_round // len(self._plan)
        step = cycle * self._num_steps + self._plan[: self._place].count("step")
        return self._descent_settings.sample(step, self.task.num_documents, self.seed)

    def descend(self) -> list[Proposal]:
        """Returns the point of this round; an empty list where the descent has to end.

        A descent starts from the best candidate so far. It ends early where no point of it had a
        finite loss and gradient.
        """
        if self._place == 0:
            if self.best is None:
                return []
            candidate, evaluation = self.best
            self._descent = Descent(self.space, candidate, self._descent_settings, self._num_steps)
            # the starting point need not be evaluated again where its gradient is known
            if evaluation.gradient is not None:
                self._descent.advance(evaluation)
        else:
            assert self._descent is not None
            told = self.history[-1].evaluation
            # a check has no gradient: the step after it starts where the step before it led to
            if self._plan[self._place - 1] == "step" and not self._descent.advance(told):
                return []
        assert self._descent is not None
        return [Proposal(self._descent.candidate, self._plan[self._place])]

    @property
    def _is_descending(self) -> bool:
        return 0 <= self.descent_round < self.num_descent_rounds

    @property
    def _place(self) -> int:
        """Number of the present round within its descent, from 0 on."""
        return self.descent_round % len(self._plan)
