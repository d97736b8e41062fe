"""A searcher over YaRN's three numbers: where the best start's ramp begins and ends, and t.

This is what `hybrid` does before its descent, with t moved too. It needs no gradients, and a round
of eight candidates keeps several data-parallel groups busy.

On seven synthetic losses (32 pairs, 8 times the window: the mean squared distance in log λ to
YaRN's curve with other ends, or to a logistic step, plus 3·(t − t*)²) 39 to 43 evaluations left 4
to 13 % of the best start's excess loss. As many evaluations of `evolution` left 55 to 80 %, ten
times as many 3 to 27 % (geometric means over 8 seeds). The optima of all seven are close to ramps;
a curve of another form cannot be reached with any budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.search.options import SettingOption
from megatron_longrope.search.ramp import Ramp, RampSettings
from megatron_longrope.search.rounds import Proposal, RoundSearcher
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import SearchTask


class RampSearchSettings(RampSettings):
    """Sizes of the search: six moves of the ramp and two of t a round.

    The step of the ramp, and that of t, is halved where none of its moves was the best.
    """

    temperature_step: int = Field(default=4, ge=1)
    """First step of t, in choices of the space, which are 0.01 apart."""

    @property
    def most_evaluations(self) -> int:
        """Most evaluations of all rounds; fewer where the steps get too small before."""
        return super().most_evaluations + 2 * self.max_rounds


class RampSearch(RoundSearcher[RampSearchSettings]):
    """Evaluates the seeds, then rounds of moves of the ramp and of t from the best so far.

    >>> space = SearchSpace.first_stage(num_pairs=16, scale=8)
    >>> task = SearchTask(length=4096, scale=8, num_documents=4)
    >>> start = Candidate(tuple(8 ** (pair / 15) for pair in range(16)))
    >>> RampSearch(space, RampSearchSettings(max_rounds=4), [start], 1, task).num_evaluations
    33
    """

    name = "ramp"
    summary = "the best start's ramp and t moved: cheap, without gradients"
    Settings = RampSearchSettings
    options = (
        SettingOption(
            "--ramp-rounds",
            "rounds of moves, at most eight evaluations each  "
            f"[default: at most {RampSearchSettings().max_rounds}]",
            lambda rounds: {"max_rounds": rounds},
            at_least=0,
        ),
    )
    searches_start_tokens = False

    def __init__(
        self,
        space: SearchSpace,
        settings: RampSearchSettings,
        seeds: Sequence[Candidate],
        seed: int,
        task: SearchTask,
    ) -> None:
        super().__init__(space, settings, seeds, seed, task)
        self._ramp: Ramp | None = None
        self._temperature_step = settings.temperature_step
        self._last_temperature: float | None = None

    @classmethod
    def moves_ramps(cls, settings: RampSearchSettings) -> bool:
        """Returns whether there are rounds of ramps."""
        return settings.max_rounds > 0

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations from first to last; fewer where the steps get too small before."""
        if self.finished:
            return len(self.history)
        return len(self.seeds) + self.settings.most_evaluations

    def next_round(self) -> list[Proposal]:
        """Returns the seeds, then moves of the ramp at the best t and of t at the best ramp."""
        if self.round_number == 0:
            return [Proposal(seed, "seed") for seed in self.seeds]
        if self.best is None or self.round_number > self.settings.max_rounds:
            return []
        best = self.best[0]
        places, temperatures = self._moved_ramps(best), self._moved_temperatures(best)
        return [
            *(Proposal(candidate, "ramp") for candidate in places),
            *(Proposal(candidate, "temperature") for candidate in temperatures),
        ]

    def _moved_ramps(self, best: Candidate) -> list[Candidate]:
        """Returns the next places of the ramp, at the t of the best candidate."""
        if self._ramp is None:
            self._ramp = Ramp(self.space, best, self.settings)
        # a Ramp recognises its places by candidates at the t of its start, so t is put back for it
        at_first = self._ramp.start.attention_factor
        known = {replace(told.candidate, attention_factor=at_first) for told in self.history}
        moved = self._ramp.next_round(replace(best, attention_factor=at_first), known)
        return [replace(place, attention_factor=best.attention_factor) for place in moved]

    def _moved_temperatures(self, best: Candidate) -> list[Candidate]:
        """Returns the best candidate with t one step up and one step down, as far as these are new.

        The step is halved where t did not move in the last round, and until something is new.
        """
        choices, known = self.space.attention_factors, {told.candidate for told in self.history}
        place = choices.index(best.attention_factor)
        if best.attention_factor == self._last_temperature:
            self._temperature_step //= 2
        self._last_temperature = best.attention_factor
        while self._temperature_step:
            moved = [
                replace(best, attention_factor=choices[at])
                for at in (place - self._temperature_step, place + self._temperature_step)
                if 0 <= at < len(choices)
            ]
            if new := [candidate for candidate in moved if candidate not in known]:
                return new
            self._temperature_step //= 2
        return []
