"""A pattern search over the two ends of YaRN's ramp, between which the rescale factors rise.

YaRN's ramp begins at 32 turns in the window and ends at one, which its authors found good for
LLaMA. The best place differs from model to model, and two numbers describe it: forty evaluations of
ramps gain more than a thousand that vary λ pair by pair (docs/log.md).
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
"""Moves of a ramp's begin and end, in steps: one end, or both together."""
_NARROWEST = 0.5
"""Shortest ramp tried, in pairs from its begin to its end."""
_QUARTILES = (0.25, 0.75)
"""Shares of its rise from which a ramp's two ends are extrapolated."""
_SLIGHTEST = 1e-9
"""Relative rise below which λ counts as level."""


class RampSettings(StrictConfig):
    """Sizes of the search: six moves a round; the step is halved where none of them is better."""

    max_rounds: int = Field(default=8, ge=0)
    """Rounds at most; with 0 the ramp stays where the best seed has it."""
    first_step: float = Field(default=0.125, gt=0, le=1)
    """Length of the first moves, as a share of all pairs."""
    last_step: float = Field(default=0.015625, gt=0, le=1)
    """Length of the shortest moves, as a share of all pairs."""

    @property
    def most_evaluations(self) -> int:
        """Most evaluations of all rounds; fewer where the step gets too small before."""
        return self.max_rounds * len(_MOVES)


class Place(NamedTuple):
    """The begin and the end of a ramp, as real pair indices from the highest frequency on."""

    begin: float
    end: float


class Ramp:
    """The rounds of one search for the best place of the ramp, from a start such as YaRN.

    Up to the ramp's begin, λ is the space's lower bound: 1 in a first search, the fine-tuned
    factors in a second one. From its end on, λ is that bound times the rise, which is the start's
    last λ over the last bound. Between them 1/λ falls linearly, as in YaRN (arXiv 2309.00071,
    section 3.2).
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
        """Returns the next candidates to evaluate, an empty list when the search is over.

        `best` is the best candidate so far. Candidates that are `known` are not proposed again.
        """
        if self._place is None:
            return []
        if best in self._asked:  # one of the last round's moves won: follow it
            self._place = self._asked[best]
        elif self._asked:  # none did: look closer
            self._step /= 2
        while self._rounds_left and self._step >= self._last_step:
            self._asked = self._neighbours(self._place, known)
            if self._asked:
                self._rounds_left -= 1
                return list(self._asked)
            self._step /= 2
        return []

    def _neighbours(self, place: Place, known: Collection[Candidate]) -> dict[Candidate, Place]:
        """Returns the unknown candidates one step around `place`, each with its own place."""
        moved = [Place(place.begin + x * self._step, place.end + y * self._step) for x, y in _MOVES]
        found = {self._candidate(at): at for at in moved if at.end - at.begin >= _NARROWEST}
        return {candidate: at for candidate, at in found.items() if candidate not in known}

    def _candidate(self, place: Place) -> Candidate:
        """Returns the candidate of the space nearest to the ramp at `place`."""
        # λ_low,i/λ_i = (1 − r_i) + r_i/rise, with the ramp r_i from 0 at begin to 1 at end
        share = (np.arange(self.space.num_pairs) - place.begin) / (place.end - place.begin)
        share = np.clip(share, 0.0, 1.0)
        rescale = self._lower / (1 - share + share / self._rise)
        return self.space.project(
            replace(self.start, rescale=tuple(float(value) for value in rescale))
        )

    def _place_of(self, start: Candidate) -> Place | None:
        """Returns the place of the ramp that `start` is or resembles; None where λ does not rise.

        The pairs at which a quarter and three quarters of the rise are done are half a ramp apart,
        so the ends of the ramp lie a quarter of it beyond them on either side.
        """
        if self._rise <= 1 + _SLIGHTEST:
            return None
        # the equation of `_candidate` solved for r_i
        share = (1 - self._lower / np.array(start.rescale)) / (1 - 1 / self._rise)
        pairs = np.arange(len(share))
        # np.interp inverts r, for which it must increase strictly
        rising: Vector = np.maximum.accumulate(share) + _SLIGHTEST * pairs
        first, last = (float(at) for at in np.interp(_QUARTILES, rising, pairs))
        if last - first < _SLIGHTEST:
            return None
        beyond = (last - first) / 2
        return Place(first - beyond, last + beyond)
