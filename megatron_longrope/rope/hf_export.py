"""Writing factor sets as the rotary settings of a Hugging Face config.

Searched factors are written as rope_type `longrope`, which has one list of λ up to the original
length and one beyond it.
"""

from __future__ import annotations

from typing import Any

from megatron_longrope.artifacts.factors import FactorSet, RopeFactors
from megatron_longrope.errors import InputError
from megatron_longrope.rope.methods import LongRope, NoScaling

HF = "transformers' longrope"
"""Name of the format in errors of `short_and_long`."""


def hf_rope_config(factors: FactorSet | RopeFactors) -> dict[str, Any]:
    """Returns what to merge into a `config.json` so that transformers 4 and 5 apply `factors`.

    Keys: max_position_embeddings, rope_theta, rope_scaling (transformers 4), rope_parameters
    (transformers 5), and with scaling original_max_position_embeddings. A set with one range is
    written as both lists. Raises InputError for what `longrope` cannot express, as
    `short_and_long` does.

    >>> from megatron_longrope.rope import PositionInterpolation, RopeGeometry
    >>> geometry = RopeGeometry(base=10000.0, head_dim=4, original_length=64)
    >>> config = hf_rope_config(PositionInterpolation(scale=2).factors(geometry))
    >>> config["max_position_embeddings"], config["rope_scaling"]["long_factor"]
    (128, [2.0, 2.0])
    """
    factor_set = FactorSet.single(factors) if isinstance(factors, RopeFactors) else factors
    geometry = factor_set.geometry
    longest = max(factor_set.target_length, geometry.original_length)
    pieces: dict[str, Any] = {"max_position_embeddings": longest, "rope_theta": geometry.base}
    if all(entry.factors.is_identity for entry in factor_set.ranges):
        unscaled = NoScaling().to_hf(geometry) or {}
        parameters = unscaled | {"rope_theta": geometry.base}
        return pieces | {"rope_scaling": None, "rope_parameters": parameters}
    settings = _longrope_settings(factor_set, longest)
    return pieces | {
        "original_max_position_embeddings": geometry.original_length,
        "rope_scaling": settings,
        "rope_parameters": settings | {"rope_theta": geometry.base},
    }


def short_and_long(factor_set: FactorSet, carrier: str = HF) -> tuple[RopeFactors, RopeFactors]:
    """Returns the factors up to the original length and those beyond it.

    Formats of serving engines (`longrope` of transformers, GGUF) hold these two lists and one
    attention factor. Raises InputError for a set that needs more: start tokens, other ranges, or
    two attention factors; `carrier` names the format in its text.
    """
    rule = f"{carrier} cannot carry it"
    if len(factor_set.ranges) > 2:
        raise InputError(
            "ranges",
            len(factor_set.ranges),
            f"{rule}: it has two, up to the original length and beyond",
        )
    short, long = factor_set.ranges[0], factor_set.ranges[-1]
    window = factor_set.geometry.original_length
    if short is not long and short.up_to != window:
        raise InputError(
            "up_to", short.up_to, f"{rule}: it changes factors at the original length, {window}"
        )
    for factors in (short.factors, long.factors):
        if factors.start_tokens:
            raise InputError(
                "start_tokens",
                factors.start_tokens,
                f"{rule}: it has no start positions left as they were",
            )
    if short.factors.attention_factor != long.factors.attention_factor:
        both = f"{short.factors.attention_factor:g} and {long.factors.attention_factor:g}"
        raise InputError("attention_factor", both, f"{rule}: it has one for short and long inputs")
    return short.factors, long.factors


def _longrope_settings(factor_set: FactorSet, longest: int) -> dict[str, Any]:
    short, long = short_and_long(factor_set)
    method = LongRope(
        short=short.rescale,
        long=long.rescale,
        scale=longest / factor_set.geometry.original_length,
        attention_factor=long.attention_factor,
    )
    return method.to_hf(factor_set.geometry)
