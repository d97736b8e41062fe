"""LongRoPE2's search space (arXiv 2502.20082): λ is free only from the critical pair on.

Pairs from the critical pair on never made a full turn in pretraining: they are searched. Faster
pairs were trained over their whole period; their λ follows from the critical pair's in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.errors import InputError
from megatron_longrope.search.space import Choices, Genome, SearchSpace

if TYPE_CHECKING:
    from typing_extensions import Unpack

_UPPER_OVER_SCALE = 2.0
"""The largest λ of a free pair over the scale s."""
_ROUNDING = 1e-9
"""Relative difference allowed between λ and the closed form, which a descent computes from logs."""


def theoretical_critical_pair(head_dim: int, base: float, original_length: int) -> int:
    """Returns the first pair whose wavelength exceeds the window: ⌈d/2 · ln(L/2π) / ln base⌉.

    LongRoPE2 calls it the theoretical critical dimension (the paper counts dimensions, two per
    pair). A search may do better from a lower pair on: the published LLaMA3-8B factors have 33.

    >>> theoretical_critical_pair(head_dim=128, base=500000.0, original_length=8192)
    35
    """
    # 2π/θ_i = 2π·base^(2i/d) ≥ L  ⇔  i ≥ d/2 · ln(L/2π) / ln base
    return math.ceil(head_dim / 2 * math.log(original_length / (2 * math.pi)) / math.log(base))


@dataclass(frozen=True)
class CriticalSpace(SearchSpace):
    """A space whose pairs below `critical_pair` = cd follow from it: λ_i = λ_cd^(i/cd).

    This is NTK-aware scaling up to pair cd: λ_0 = 1, and log λ_i grows linearly to log λ_cd. The
    bounds `lower` and `upper` are those of the free pairs, which are the ones from cd on. Genomes
    hold the free pairs only, so every searcher works in this space as in any other.

    >>> space = CriticalSpace.extension(num_pairs=4, scale=4, critical_pair=2)
    >>> space.bounds[0].tolist(), space.bounds[1].tolist()
    ([1.0, 2.0, 4.0, 4.0], [1.0, 2.8284271247461903, 8.0, 8.0])
    """

    critical_pair: int = 1

    @classmethod
    def extension(
        cls, num_pairs: int, scale: float, critical_pair: int, **choices: Unpack[Choices]
    ) -> CriticalSpace:
        """Returns the space of an extension by `scale`: free pairs from s to 2s, non-decreasing."""
        if not 1 <= critical_pair < num_pairs:
            raise InputError(
                "critical_pair", critical_pair, f"lies between 1 and {num_pairs - 1}, the last pair"
            )
        free = num_pairs - critical_pair
        return cls(
            (scale,) * free,
            (_UPPER_OVER_SCALE * scale,) * free,
            critical_pair=critical_pair,
            **choices,
        )

    @property
    def num_pairs(self) -> int:
        """Number of rotary pairs, head_dim / 2: the dependent ones and the free ones."""
        return self.critical_pair + len(self.lower)

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest λ of each pair, each [num_pairs] and non-decreasing."""
        low, high = super().bounds
        return self._complete(low), self._complete(high)

    def shape(self, rescale: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns `rescale` [num_pairs] with the closed form below the critical pair."""
        return self._complete(rescale[self.critical_pair :])

    def pull_back(
        self, by_rescale: NDArray[np.float64], rescale: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns ∂loss/∂log λ [num_pairs] by the free pairs, from ∂loss/∂λ by all pairs.

        The result is zero for the dependent pairs, and the critical pair has their share as well.
        """
        cd = self.critical_pair
        by_log = super().pull_back(by_rescale, rescale)
        free = by_log.copy()
        # log λ_i = (i/cd)·log λ_cd for i < cd, so by the chain rule
        # ∂/∂log λ_cd = (∂/∂log λ_cd alone) + Σ_{i<cd} (i/cd)·∂/∂log λ_i
        free[cd] += by_log[:cd] @ (np.arange(cd) / cd)
        free[:cd] = 0.0
        return free

    def admits(self, candidate: Candidate) -> bool:
        """Returns whether `candidate` keeps bounds, order, choices and the closed form."""
        rescale = np.array(candidate.rescale)
        return super().admits(candidate) and bool(
            np.allclose(rescale, self.shape(rescale), rtol=_ROUNDING, atol=0)
        )

    def project(self, candidate: Candidate) -> Candidate:
        """Returns the candidate of the space whose free pairs, n̂ and t are nearest."""
        self._check_length(candidate)
        return super().project(self._free(candidate))

    def encode(self, candidate: Candidate) -> Genome | None:
        """Returns the genome of `candidate`, or None where the space does not contain it."""
        self._check_length(candidate)
        genome = super().encode(self._free(candidate))
        return genome if genome is not None and self.decode(genome) == candidate else None

    def decode(self, genome: Genome) -> Candidate:
        """Returns the candidate of a genome of this space."""
        return self._whole(super().decode(genome))

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON values that define the space."""
        return {**super().to_json(), "critical_pair": self.critical_pair}

    def _complete(self, free: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns λ of all pairs [num_pairs] from those of the free pairs."""
        below = free[0] ** (np.arange(self.critical_pair) / self.critical_pair)
        return np.concatenate([below, free])

    def _free(self, candidate: Candidate) -> Candidate:
        """Returns `candidate` with the λ of its free pairs alone."""
        return Candidate(
            candidate.rescale[-len(self.lower) :],
            candidate.start_tokens,
            candidate.attention_factor,
        )

    def _whole(self, free: Candidate) -> Candidate:
        """Returns the candidate of all pairs whose free pairs are those of `free`."""
        rescale = self._complete(np.array(free.rescale))
        return Candidate(tuple(rescale), free.start_tokens, free.attention_factor)

    def _check_length(self, candidate: Candidate) -> None:
        # the inherited methods are called with candidates of the free pairs alone
        if len(candidate.rescale) not in (self.num_pairs, len(self.lower)):
            super()._check_length(candidate)
