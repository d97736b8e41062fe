"""The scaling methods every table compares: each with its own attention factor, and once more with
the searched one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_longrope.artifacts.rows import AttentionFactorSource
from megatron_longrope.errors import InputError
from megatron_longrope.rope import FactorRange, FactorSet, RopeGeometry, RopeMethod
from megatron_longrope.rope.methods.uses import baseline_kinds


@dataclass(frozen=True)
class ComparedMethod:
    """One line of a comparison: its name, its factors for inputs of a given length, and whose
    attention factor they hold."""

    name: str
    factors_at: Callable[[int], FactorSet]
    attention_factor: AttentionFactorSource = "own"

    @classmethod
    def fixed(
        cls, name: str, factor_set: FactorSet, attention_factor: AttentionFactorSource = "own"
    ) -> ComparedMethod:
        """Returns a method whose factor set is the same at every length."""
        return cls(name, lambda length: factor_set, attention_factor)

    def with_searched(self, attention_factor: float) -> ComparedMethod:
        """Returns the same λ and n̂ with another attention factor, labelled "searched"."""
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
    """Returns every method that is a baseline (none, pi, ntk, dynamic-ntk, yarn) scaled to
    `target_length`, each with its own attention factor.

    Raises InputError for a target below the window.

    Args:
        geometry: the model's base, head_dim and window.
        target_length: in tokens.
        attention_factor: a searched one; with it each method comes a second time, under that.
        written_scales: a method whose scale must be written out (dynamic NTK's `factor`) is there
            once per scale of these, by default once at target/window.
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
    """Returns the same factors with another temperature t in every range."""
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
