"""Dynamic NTK: a base that grows with the input (transformers' `dynamic`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import FactorRange, FactorSet, RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.hf_reading import FACTOR, HfRopeType
from megatron_longrope.rope.methods.base import METHODS, RopeMethod
from megatron_longrope.rope.methods.ntk import ntk_rescale

if TYPE_CHECKING:
    from torch import Tensor


class DynamicNtk(RopeMethod):
    """NTK-aware with s = f·n/L - (f-1) for an input of n > L tokens (transformers' `dynamic` with
    `factor` f).

    Each length has its own factors. transformers keeps those of the longest input it has seen since
    it last saw one inside the window; these depend on the length alone. Factor 1 is plain NTK with
    s = n/L.
    """

    name: ClassVar[str] = "dynamic-ntk"
    scale_setting: ClassVar[str | None] = "factor"
    without_scale: ClassVar[str | None] = "plain ntk"
    follows_length: ClassVar[bool] = True
    is_baseline: ClassVar[bool] = True
    hf: ClassVar[HfRopeType | None] = HfRopeType("dynamic", keys=FACTOR, required=FACTOR)

    factor: float = Field(ge=1)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors at `length` tokens; None or a length inside the window: λ = 1."""
        window = geometry.original_length
        length = max(window, length or window)
        if length == window:
            rescale = (1.0,) * geometry.num_pairs
        else:
            rescale = ntk_rescale(geometry, self.factor * length / window - (self.factor - 1))
        return self._factors(
            geometry,
            rescale,
            length,
            hf_inverse_frequencies=self._float32_frequencies(geometry, length),
        )

    def factor_set(self, geometry: RopeGeometry, length: int | None = None) -> FactorSet:
        """Returns λ = 1 inside the window and beyond it the factors of `length`, right for inputs
        that long."""
        inside, beyond = self.factors(geometry), self.factors(geometry, length)
        if beyond.target_length == geometry.original_length:
            return FactorSet.single(inside)
        window = FactorRange(up_to=geometry.original_length, factors=inside)
        return FactorSet(ranges=(window, FactorRange(up_to=None, factors=beyond)))

    def _float32_frequencies(self, geometry: RopeGeometry, length: int) -> tuple[float, ...]:
        """Returns transformers' frequencies of a new base, which it computes in float32 for inputs
        beyond the window, in float64 before."""
        import torch

        from megatron_longrope.rope.hf_precision import float32_powers, to_floats

        window, head_dim = geometry.original_length, geometry.head_dim
        seq_len: int | Tensor = torch.tensor(length) if length > window else window
        ratio = (self.factor * seq_len / window) - (self.factor - 1)
        new_base = geometry.base * ratio ** (head_dim / (head_dim - 2))
        return to_floats(1.0 / float32_powers(new_base, head_dim))


METHODS.register(DynamicNtk.name, DynamicNtk)
