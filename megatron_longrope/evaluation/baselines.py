"""The scaling methods every table compares, with their own and with the searched attention factor.

A baseline under the searched attention factor shows how much of a gain comes from λ alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_longrope.artifacts.rows import AttentionFactorSource
from megatron_longrope.errors import InputError
from megatron_longrope.rope import FactorRange, FactorSet, RopeGeometry, RopeMethod
from megatron_longrope.rope.methods.uses import baseline_kinds


@dataclass(frozen=True)
class ComparedMethod:
    """One line of a comparison: a method's name and its factors for inputs of a given length."""

    name: str
    factors_at: Callable[[int], FactorSet]
    """Maps a length in tokens to the factors the method uses there."""
    attention_factor: AttentionFactorSource = "own"
    """Whether the factors hold the method's own attention factor or the searched one."""

    @classmethod
    def fixed(
        cls, name: str, factor_set: FactorSet, attention_factor: AttentionFactorSource = "own"
    ) -> ComparedMethod:
        """Returns a method whose factor set is the same at every length."""
        return cls(name, lambda length: factor_set, attention_factor)

    def with_searched(self, attention_factor: float) -> ComparedMethod:
        """Returns this method's λ and n̂ with a searched attention factor, labelled "searched"."""
        own = self.factors_at
        return ComparedMethod(
            self.name, lambda n: with_attention_factor(own(n), attention_factor), "searched"
        )


def baseline_methods(
    geometry: RopeGeometry,
    target_length: int,
    *,
    attention_factor: float | None = None,
    written_scales: Sequence[float] | None = None,
) -> list[ComparedMethod]:
    """Returns every baseline (none, pi, ntk, dynamic-ntk, yarn …) scaled to `target_length`.

    Each has its own attention factor. Raises InputError for a target below the window.

    >>> geometry = RopeGeometry(base=10000, head_dim=64, original_length=2048)
    >>> [method.name for method in baseline_methods(geometry, 8192)][:3]
    ['none', 'pi', 'ntk']

    Args:
        geometry: The model's base, head_dim and window.
        target_length: Tokens; the scale is target_length over the window.
        attention_factor: A searched one. If given, the list holds each method a second time, under
            this attention factor.
        written_scales: Scales for methods that have theirs written out (dynamic NTK's `factor`),
            which are listed once per scale; by default once at target_length/window.
    """
    scale = target_length / geometry.original_length
    if scale < 1:
        raise InputError(
            "target_length",
            target_length,
            f"at least the window, {geometry.original_length} tokens",
        )
    own: list[ComparedMethod] = []
    for kind in baseline_kinds():
        if kind.without_scale is None:
            own.append(_compared(kind.name, kind.from_scale(scale), geometry))
        else:
            own += [
                _compared(f"{kind.name}:{written:g}", kind.from_scale(written), geometry)
                for written in written_scales or (scale,)
            ]
    searched = (
        []
        if attention_factor is None
        else [method.with_searched(attention_factor) for method in own]
    )
    return own + searched


def with_attention_factor(factor_set: FactorSet, attention_factor: float) -> FactorSet:
    """Returns the same λ and n̂ with another attention factor t in every range."""
    ranges = (
        FactorRange(
            up_to=entry.up_to,
            factors=entry.factors.model_copy(update={"attention_factor": attention_factor}),
        )
        for entry in factor_set.ranges
    )
    return FactorSet(ranges=tuple(ranges))


def _compared(name: str, method: RopeMethod, geometry: RopeGeometry) -> ComparedMethod:
    return ComparedMethod(name, lambda length: method.factor_set(geometry, length))
