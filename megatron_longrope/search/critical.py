"""LongRoPE2's search space (arXiv 2502.20082): free factors from the critical pair on, a closed
form below it."""

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
# Relative: what a sum of logarithms may differ from a power.
_ROUNDING = 1e-9


def theoretical_critical_pair(head_dim: int, base: float, original_length: int) -> int:
    """Returns the first pair whose wavelength exceeds the pretrained window: ⌈d/2 · ln(L/2π) / ln
    base⌉.

    The search may well do better below it: LongRoPE2 publishes 33 for LLaMA3-8B, where this gives
    35.
    """
    return math.ceil(head_dim / 2 * math.log(original_length / (2 * math.pi)) / math.log(base))


@dataclass(frozen=True)
class CriticalSpace(SearchSpace):
    """`lower` and `upper` bound the pairs from `critical_pair` on; below it λ_i = λ_cd^(i/cd).

    Genomes hold the free pairs only, so every searcher works in this space as in any other.
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
        """Rotary pairs, head_dim / 2."""
        return self.critical_pair + len(self.lower)

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and greatest λ of each pair, each [num_pairs], neither decreasing."""
        low, high = super().bounds
        return self._complete(low), self._complete(high)

    def shape(self, rescale: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns `rescale` [num_pairs] with the closed form below the critical pair."""
        return self._complete(rescale[self.critical_pair :])

    def pull_back(self, by_log: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns ∂/∂log λ [num_pairs] with what the dependent pairs say handed on to the critical
        one."""
        cd = self.critical_pair
        free = by_log.copy()
        free[cd] += by_log[:cd] @ (np.arange(cd) / cd)
        free[:cd] = 0.0
        return free

    def admits(self, candidate: Candidate) -> bool:
        """Whether `candidate` keeps bounds, order, choices and the closed form."""
        rescale = np.array(candidate.rescale)
        return super().admits(candidate) and bool(
            np.allclose(rescale, self.shape(rescale), rtol=_ROUNDING, atol=0)
        )

    def project(self, candidate: Candidate) -> Candidate:
        """Returns the nearest candidate of the space, judged by the free pairs."""
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
        """Returns JSON values that define the space."""
        return {**super().to_json(), "critical_pair": self.critical_pair}

    def _complete(self, free: NDArray[np.float64]) -> NDArray[np.float64]:
        below = free[0] ** (np.arange(self.critical_pair) / self.critical_pair)
        return np.concatenate([below, free])

    def _free(self, candidate: Candidate) -> Candidate:
        return Candidate(
            candidate.rescale[-len(self.lower) :],
            candidate.start_tokens,
            candidate.attention_factor,
        )

    def _whole(self, free: Candidate) -> Candidate:
        rescale = self._complete(np.array(free.rescale))
        return Candidate(tuple(rescale), free.start_tokens, free.attention_factor)

    def _check_length(self, candidate: Candidate) -> None:
        if len(candidate.rescale) not in (self.num_pairs, len(self.lower)):
            super()._check_length(candidate)
