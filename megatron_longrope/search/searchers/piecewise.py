"""Microsoft's piecewise variant of the evolution: λ is constant at both ends of the pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.search.searchers.evolution import EvolutionSearch, EvolutionSettings
from megatron_longrope.search.space import Genome, SearchSpace, nearest
from megatron_longrope.search.types import SearchStage, SearchTask, SpaceName
from megatron_longrope.search.variation import mutate

_SPREAD = 2.0
"""Standard deviation of a move of either end, in pairs."""


class PiecewiseSearch(EvolutionSearch):
    """Evolves λ that is at its lower bound up to a pair α and at `level` from a pair β on.

    α and β are read off the parent and moved a little with each mutation; between them λ varies as
    in the plain evolution. `level` is the scale s, as in `dim_piece_mono` of microsoft/LongRoPE,
    where the idea comes from.
    """

    name = "piecewise"
    summary = "the evolution with both ends of λ frozen, as in Microsoft's code"
    unfit_spaces: ClassVar[Mapping[SpaceName, str]] = {
        "longrope2": "ends at λ = s, which is where space longrope2 begins",
        "open": "ends at λ = s, far below where space open does",
    }
    unfit_stages: ClassVar[Mapping[SearchStage, str]] = {
        "recovery": "ends at λ = s, which is 1 or less for short inputs"
    }

    def __init__(
        self,
        space: SearchSpace,
        settings: EvolutionSettings,
        seeds: Sequence[Candidate],
        seed: int,
        task: SearchTask,
    ) -> None:
        super().__init__(space, settings, seeds, seed, task)
        self.level = task.scale
        self._level_index = int(nearest(space.values, np.array(self.level)))

    def settings_json(self) -> dict[str, object]:
        """Returns the settings as the JSON values that the journal's header holds, with `level`."""
        return {**super().settings_json(), "level": self.level}

    def _mutant(self, parents: Sequence[Genome]) -> Genome:
        parent = self._choose(parents)
        child = mutate(self.space, parent, self.settings.mutation_probability, self._rng)
        first, last = self._ends(parent)
        num_pairs = len(child) - 2
        first, last = sorted(round(end + self._rng.normal(0, _SPREAD)) for end in (first, last))
        first, last = max(0, first), min(num_pairs, max(last, 0))
        low, high = self.space.low[:-2], self.space.high[:-2]
        # at most `level` everywhere, then both ends constant; clipped and made non-decreasing last,
        # because a second search has lower bounds that may exceed `level`
        pairs = np.minimum(child[:-2], np.maximum(self._level_index, low))
        pairs[:first] = low[:first]
        pairs[last:] = self._level_index
        child[:-2] = np.maximum.accumulate(np.clip(pairs, low, high))
        return child

    def _ends(self, genome: Genome) -> tuple[int, int]:
        """Returns α, the first pair above its lower bound, and β, the first at `level` or above."""
        pairs = genome[:-2]
        above = np.flatnonzero(pairs > self.space.low[:-2])
        level = np.flatnonzero(pairs >= self._level_index)
        first = int(above[0]) if len(above) else len(pairs)
        last = int(level[0]) if len(level) else len(pairs)
        return first, last
