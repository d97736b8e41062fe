"""A searcher that is one gradient descent on λ and t, from the best seed."""

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
    """Evaluates the seeds, then descends from the best of them; n̂ stays as in that seed.

    >>> space = SearchSpace.first_stage(num_pairs=4, scale=8)
    >>> task = SearchTask(length=4096, scale=8, num_documents=4)
    >>> settings = DescentSettings(passes=30, documents_per_step=None)
    >>> search = GradientSearch(space, settings, [Candidate((8.0,) * 4)], 1, task)
    >>> search.num_evaluations, search.asks_gradient  # the round of the seeds needs no gradient
    (31, False)
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
        """Returns True: every search of this kind asks for evaluations with gradients."""
        return True

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations from first to last; fewer only where no point has a loss."""
        return len(self.history) if self.finished else len(self.seeds) + self.num_descent_rounds

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, then one point of the descent at a time."""
        if self.round_number == 0:
            return [Proposal(seed, "seed") for seed in self.seeds]
        return self.descend() if self.descent_round < self.num_descent_rounds else []
