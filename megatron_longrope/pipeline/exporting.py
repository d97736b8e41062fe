"""Which part of a run's factor set Hugging Face's `longrope` can carry."""

from __future__ import annotations

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.rope import FactorRange, FactorSet


def export_factor_set(factor_set: FactorSet, window: int) -> tuple[FactorSet, list[str]]:
    """Returns the two ranges transformers knows — inputs up to `window`, and longer ones — and what is left behind.

    Longer inputs get the factors of the longest range. Raises InputError where the temperatures of the two differ or
    start positions are kept: transformers has one attention_factor and no n̂.
    """
    short, long = factor_set.for_length(window), factor_set.ranges[-1].factors
    if short.attention_factor != long.attention_factor:
        raise InputError(
            "export", f"{short.attention_factor:g} and {long.attention_factor:g}",
            "transformers has one attention_factor for short and long inputs; search the later sets with "
            "`temperature: inherited`, or set `export: false`",
        )  # fmt: skip
    left_out = [
        f"factors for inputs up to {format_length(entry.up_to)} are left out: transformers knows two sets, "
        f"and longer inputs get those for {format_length(long.target_length)}"
        for entry in factor_set.ranges
        if entry.up_to is not None and entry.up_to > window
    ]
    carried = FactorSet(ranges=(FactorRange(up_to=window, factors=short), FactorRange(up_to=None, factors=long)))
    return carried, left_out
