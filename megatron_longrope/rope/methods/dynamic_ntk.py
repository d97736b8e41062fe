"""Dynamic NTK scaling: a rotary base that grows with the input length (transformers' `dynamic`)."""

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
    """NTK-aware scaling whose scale follows the input: s = f·n/L − (f − 1) for n > L tokens.

    f is `factor`, L the pretrained window (YaRN's paper, arXiv 2309.00071, section 3.3, has f = 1;
    transformers' `dynamic` added f). Inputs within the window are not scaled. Factor 1 is plain NTK
    with s = n/L.

    The factors depend on the length of the input alone. A model of transformers instead keeps those
    of the longest input seen since its last input within the window.

    >>> geometry = RopeGeometry(base=10000.0, head_dim=4, original_length=64)
    >>> scaled = DynamicNtk(factor=2).factor_set(geometry, length=128)
    >>> scaled.for_length(64).rescale, scaled.for_length(128).rescale  # s = 2·128/64 − 1 = 3
    ((1.0, 1.0), (1.0, 3.0))
    """

    name: ClassVar[str] = "dynamic-ntk"
    scale_setting: ClassVar[str | None] = "factor"
    without_scale: ClassVar[str | None] = "plain ntk"
    follows_length: ClassVar[bool] = True
    is_baseline: ClassVar[bool] = True
    hf: ClassVar[HfRopeType | None] = HfRopeType("dynamic", keys=FACTOR, required=FACTOR)

    factor: float = Field(ge=1)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors at `length` tokens; λ = 1 for None and within the window."""
        window = geometry.original_length
        length = max(window, length or window)
        if length == window:
            rescale = (1.0,) * geometry.num_pairs
        else:
            # s = f·n/L − (f − 1), in the order of transformers
            rescale = ntk_rescale(geometry, self.factor * length / window - (self.factor - 1))
        return self.make_factors(
            geometry,
            rescale,
            length,
            hf_inverse_frequencies=self._float32_frequencies(geometry, length),
        )

    def factor_set(self, geometry: RopeGeometry, length: int | None = None) -> FactorSet:
        """Returns λ = 1 within the window, and the factors of `length` tokens beyond it."""
        inside, beyond = self.factors(geometry), self.factors(geometry, length)
        if beyond.target_length == geometry.original_length:
            return FactorSet.single(inside)
        window = FactorRange(up_to=geometry.original_length, factors=inside)
        return FactorSet(ranges=(window, FactorRange(up_to=None, factors=beyond)))

    def _float32_frequencies(self, geometry: RopeGeometry, length: int) -> tuple[float, ...]:
        """Returns 1 / base'^(2i/d) with base' = base·s^(d/(d−2)), rounded as transformers does."""
        import torch

        from megatron_longrope.rope.hf_precision import float32_powers, to_floats

        window, head_dim = geometry.original_length, geometry.head_dim
        # transformers passes the length of a longer input as a tensor, which makes the new base a
        # float32 tensor, and the window as a Python integer, which makes it a float64 number
        seq_len: int | Tensor = torch.tensor(length) if length > window else window
        ratio = (self.factor * seq_len / window) - (self.factor - 1)
        new_base = geometry.base * ratio ** (head_dim / (head_dim - 2))
        return to_floats(1.0 / float32_powers(new_base, head_dim))


METHODS.register(DynamicNtk.name, DynamicNtk)
