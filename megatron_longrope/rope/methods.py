"""All scaling methods under one roof, and the words that name them on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from megatron_longrope.artifacts.factor_file import read_factors
from megatron_longrope.artifacts.factors import FactorSet
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.errors import InputError
from megatron_longrope.rope.interpolation import (
    DynamicNtk,
    NoScaling,
    NtkAware,
    PositionInterpolation,
    RopeMethod,
)
from megatron_longrope.rope.llama3 import Llama3
from megatron_longrope.rope.longrope import LongRope, longrope_attention_factor
from megatron_longrope.rope.yarn import Yarn

__all__ = [
    "METHOD_NAMES",
    "DynamicNtk",
    "Llama3",
    "LongRope",
    "NoScaling",
    "NtkAware",
    "PositionInterpolation",
    "RopeMethod",
    "Yarn",
    "longrope_attention_factor",
    "method_from_text",
]

_SCALED: dict[str, Callable[[float], RopeMethod]] = {
    "pi": lambda scale: PositionInterpolation(scale=scale),
    "ntk": lambda scale: NtkAware(scale=scale),
    "dynamic-ntk": lambda scale: DynamicNtk(factor=scale),
    "yarn": lambda scale: Yarn(scale=scale),
}
METHOD_NAMES = ("none", *_SCALED)
"""What `--method` takes by name; anything else is the path of a factors file."""


def method_from_text(
    text: str, geometry: RopeGeometry, length: int, target: int | None = None
) -> FactorSet:
    """Returns the factors `--method NAME[:SCALE]` (or a factors file) asks for at `length` tokens.

    Without SCALE it is target/window where a target is given, else length/window, and never below
    1. dynamic-ntk wants SCALE, transformers' `factor`: without it, it would be plain ntk. Raises
    InputError.
    """
    name, colon, scale_text = text.partition(":")
    if name not in METHOD_NAMES:
        return _from_file(text, geometry)
    if name == "none":
        if colon:
            raise InputError("--method", text, "none takes no scale")
        return NoScaling().factor_set(geometry)
    if not colon and name == "dynamic-ntk":
        raise InputError(
            "--method",
            text,
            "give its factor, as in dynamic-ntk:2; without one it would be plain ntk",
        )
    scale = (
        _parse_scale(text, scale_text)
        if colon
        else max(1.0, (target or length) / geometry.original_length)
    )
    return _SCALED[name](scale).factor_set(geometry, length)


def _parse_scale(text: str, scale_text: str) -> float:
    try:
        scale = float(scale_text)
    except ValueError as error:
        raise InputError("--method", text, "a scale is a number, as in yarn:2") from error
    if not (math.isfinite(scale) and scale >= 1):
        raise InputError("--method", text, "a scale is finite and at least 1")
    return scale


def _from_file(text: str, geometry: RopeGeometry) -> FactorSet:
    if not text.endswith(".json") and not Path(text).is_file():
        raise InputError(
            "--method", text, f"one of {', '.join(METHOD_NAMES)}, or a factors JSON file"
        )
    factor_set = read_factors(text)
    theirs = factor_set.geometry
    if (theirs.base, theirs.head_dim) != (geometry.base, geometry.head_dim):
        rule = f"made for base {theirs.base:g} and head_dim {theirs.head_dim}"
        raise InputError(
            "--method", text, f"{rule}; this model has {geometry.base:g} and {geometry.head_dim}"
        )
    return factor_set
