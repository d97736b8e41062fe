"""Where along the frequencies the factors rise: a ramp from the least λ to the greatest, its two
ends moved.

YaRN's ramp stands where its authors found it good for LLaMA, between 32 turns in the window and
one. The best place differs from model to model, and two numbers say it: forty evaluations gain more
than a thousand λ by λ (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.config import StrictConfig
from megatron_longrope.search.space import SearchSpace

Vector = NDArray[np.float64]
_MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))
"""Of begin and end, in steps."""
_NARROWEST = 0.5
"""Pairs from begin to end."""
_QUARTILES = (0.25, 0.75)
_SLIGHTEST = 1e-9


class RampSettings(StrictConfig):
    """Six moves a round, the best one followed; the step is halved where none is better."""

    max_rounds: int = Field(default=8, ge=0)
    """0: the ramp stays where the best seed has it."""
    first_step: float = Field(default=0.125, gt=0, le=1)
    """As a share of all pairs."""
    last_step: float = Field(default=0.015625, gt=0, le=1)

    @property
    def most_evaluations(self) -> int:
        """Of all rounds; fewer where the step gets too small before."""
        return self.max_rounds * len(_MOVES)


class Place(NamedTuple):
    """Where a ramp begins and ends, in pairs from the highest frequency on."""

    begin: float
    end: float


class Ramp:
    """The rounds of one search for the best place, from a start that is some ramp itself.

    Between begin and end 1/λ falls evenly from 1/λ_low to that of the start's greatest λ, as YaRN's
    does; λ_low is the space's lower bound, 1 in a first extension and the fine-tuned factors in a
    second one.
    """

    def __init__(self, space: SearchSpace, start: Candidate, settings: RampSettings) -> None:
        self.space, self.start = space, start
        self._lower = space.bounds[0]
        self._rise = float(start.rescale[-1] / self._lower[-1])
        self._place = self._place_of(start)
        self._step = settings.first_step * space.num_pairs
        self._last_step = settings.last_step * space.num_pairs
        self._rounds_left = settings.max_rounds
        self._asked: dict[Candidate, Place] = {}

    def next_round(self, best: Candidate, known: Collection[Candidate]) -> list[Candidate]:
        """Returns the next places to try, none when the search is over. `best`: of all candidates
        so far; `known`: those that need no evaluation.
        """
        if self._place is None:
            return []
        if best in self._asked:
            self._place = self._asked[best]
        elif self._asked:
            self._step /= 2
        while self._rounds_left and self._step >= self._last_step:
            self._asked = self._neighbours(self._place, known)
            if self._asked:
                self._rounds_left -= 1
                return list(self._asked)
            self._step /= 2
        return []

    def _neighbours(self, place: Place, known: Collection[Candidate]) -> dict[Candidate, Place]:
        moved = [Place(place.begin + x * self._step, place.end + y * self._step) for x, y in _MOVES]
        found = {self._candidate(at): at for at in moved if at.end - at.begin >= _NARROWEST}
        return {candidate: at for candidate, at in found.items() if candidate not in known}

    def _candidate(self, place: Place) -> Candidate:
        share = (np.arange(self.space.num_pairs) - place.begin) / (place.end - place.begin)
        share = np.clip(share, 0.0, 1.0)
        rescale = self._lower / (1 - share + share / self._rise)
        return self.space.project(
            replace(self.start, rescale=tuple(float(value) for value in rescale))
        )

    def _place_of(self, start: Candidate) -> Place | None:
        """From where a quarter and three quarters of the rise are done; None where nothing
        rises."""
        if self._rise <= 1 + _SLIGHTEST:
            return None
        share = (1 - self._lower / np.array(start.rescale)) / (1 - 1 / self._rise)
        pairs = np.arange(len(share))
        rising: Vector = np.maximum.accumulate(share) + _SLIGHTEST * pairs
        first, last = (float(at) for at in np.interp(_QUARTILES, rising, pairs))
        if last - first < _SLIGHTEST:
            return None
        beyond = (last - first) / 2
        return Place(first - beyond, last + beyond)
