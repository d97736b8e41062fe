"""Which part of a run's factor set Hugging Face's `longrope` can carry."""

from __future__ import annotations

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.rope import FactorRange, FactorSet


def export_factor_set(factor_set: FactorSet, window: int) -> tuple[FactorSet, list[str]]:
    """Returns the two ranges transformers knows — inputs up to `window`, and longer ones — and what
    is left behind.

    Longer inputs get the factors of the longest range that shares the short one's temperature:
    transformers has one attention_factor. Raises InputError where none does.
    """
    short = factor_set.for_length(window)
    beyond = [
        entry.factors for entry in factor_set.ranges if entry.up_to is None or entry.up_to > window
    ]
    able = [factors for factors in beyond if factors.attention_factor == short.attention_factor]
    if not able:
        temperatures = ", ".join(f"{factors.attention_factor:g}" for factors in (short, *beyond))
        raise InputError(
            "export",
            temperatures,
            "transformers has one attention_factor for short and long inputs; search the other "
            "sets with "
            "`attention_factor: inherited`, or set `export: false`",
        )
    long = able[-1]
    left_out = [
        f"the factors for {format_length(factors.target_length)} (temperature "
        f"{factors.attention_factor:g}) are left "
        "out: transformers knows two sets and one temperature, and gets those for "
        f"{format_length(long.target_length)}"
        for factors in beyond
        if factors is not long
    ]
    carried = FactorSet(
        ranges=(FactorRange(up_to=window, factors=short), FactorRange(up_to=None, factors=long))
    )
    return carried, left_out
