"""The closed-form methods: no scaling, position interpolation, NTK-aware base, dynamic NTK."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import FactorOrigin, FactorRange, FactorSet, RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.config import StrictConfig, build_config
from megatron_longrope.rope.hf_precision import (
    float32_dynamic_frequencies,
    float32_linear_frequencies,
)


class RopeMethod(StrictConfig, ABC):
    """A scaling method: its settings, and the factors they give for a rotary geometry."""

    name: ClassVar[str]

    @abstractmethod
    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors for an input of `length` tokens; None: for the length the method was
        made for.

        Raises InputError where the settings do not fit the geometry.
        """

    def factor_set(self, geometry: RopeGeometry, length: int | None = None) -> FactorSet:
        """Returns the factors by input length; `length` matters where they follow it without end
        (dynamic NTK)."""
        return FactorSet.single(self.factors(geometry, length))

    def _factors(
        self,
        geometry: RopeGeometry,
        rescale: tuple[float, ...],
        target_length: int,
        attention_factor: float = 1.0,
        hf_inverse_frequencies: tuple[float, ...] | None = None,
    ) -> RopeFactors:
        values = {
            "rescale": rescale,
            "attention_factor": attention_factor,
            "target_length": target_length,
            "origin": FactorOrigin(method=self.name),
            "hf_inverse_frequencies": hf_inverse_frequencies,
        }
        return build_config(RopeFactors, geometry.model_dump() | values, f"factors of {self.name}")


class NoScaling(RopeMethod):
    """The rotary embedding as it was trained: λ_i = 1."""

    name: ClassVar[str] = "none"

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ = 1 for every pair, whatever the length."""
        return self._factors(geometry, (1.0,) * geometry.num_pairs, geometry.original_length)


class PositionInterpolation(RopeMethod):
    """Positions pressed into the window: λ_i = s (arXiv 2306.15595; transformers' `linear`)."""

    name: ClassVar[str] = "pi"
    scale: float = Field(ge=1)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ = s for every pair, whatever the length."""
        return self._factors(
            geometry,
            (float(self.scale),) * geometry.num_pairs,
            round(self.scale * geometry.original_length),
            hf_inverse_frequencies=float32_linear_frequencies(
                geometry.base, geometry.head_dim, self.scale
            ),
        )


class NtkAware(RopeMethod):
    """A larger base, base·s^(d/(d-2)): the fastest pair is kept, the slowest interpolated by s; λ_i
    = s^(2i/(d-2))."""

    name: ClassVar[str] = "ntk"
    scale: float = Field(ge=1)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns λ_i = s^(2i/(d-2)), whatever the length."""
        return self._factors(
            geometry,
            _ntk_rescale(geometry, self.scale),
            round(self.scale * geometry.original_length),
        )


class DynamicNtk(RopeMethod):
    """NTK-aware with s = f·n/L - (f-1) for an input of n > L tokens (transformers' `dynamic` with
    `factor` f).

    Each length has its own factors. transformers keeps those of the longest input it has seen since
    it last saw one inside the window; these depend on the length alone. Factor 1 is plain NTK with
    s = n/L.
    """

    name: ClassVar[str] = "dynamic-ntk"
    factor: float = Field(ge=1)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors at `length` tokens; None or a length inside the window: λ = 1."""
        window = geometry.original_length
        length = max(window, length or window)
        if length == window:
            rescale = (1.0,) * geometry.num_pairs
        else:
            rescale = _ntk_rescale(geometry, self.factor * length / window - (self.factor - 1))
        frequencies = float32_dynamic_frequencies(
            geometry.base, geometry.head_dim, self.factor, window, length
        )
        return self._factors(geometry, rescale, length, hf_inverse_frequencies=frequencies)

    def factor_set(self, geometry: RopeGeometry, length: int | None = None) -> FactorSet:
        """Returns λ = 1 inside the window and beyond it the factors of `length`, right for inputs
        that long."""
        inside, beyond = self.factors(geometry), self.factors(geometry, length)
        if beyond.target_length == geometry.original_length:
            return FactorSet.single(inside)
        window = FactorRange(up_to=geometry.original_length, factors=inside)
        return FactorSet(ranges=(window, FactorRange(up_to=None, factors=beyond)))


def _ntk_rescale(geometry: RopeGeometry, scale: float) -> tuple[float, ...]:
    last = geometry.head_dim - 2
    return tuple(float(scale ** (2 * i / last)) for i in range(geometry.num_pairs))
