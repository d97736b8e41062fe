"""Rotary settings of Hugging Face configs, both generations, to factor sets.

transformers 4 keeps them in `rope_scaling` beside `rope_theta`, transformers 5 in
`rope_parameters`. Whatever this module does not know it refuses: a setting dropped on the way would
change the model without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from megatron_longrope.artifacts.factors import FactorRange, FactorSet
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.rope.hf_export import hf_rope_config
from megatron_longrope.rope.hf_settings import (
    COMMON_KEYS,
    ORIGINAL_KEY,
    max_length,
    read_geometry,
    read_rope_parameters,
    rope_type_of,
)
from megatron_longrope.rope.methods import (
    DynamicNtk,
    Llama3,
    LongRope,
    NoScaling,
    PositionInterpolation,
    RopeMethod,
    Yarn,
)

__all__ = ["factor_set_from_hf", "geometry_from_hf", "hf_rope_config", "method_from_hf"]


def factor_set_from_hf(config: Mapping[str, Any], length: int | None = None) -> FactorSet:
    """Returns the factors of a HF model config (`config.json` as a dictionary).

    `length` in tokens is needed for `dynamic` alone, whose factors beyond the window follow the
    input. Raises InputError for an unknown rope_type or key, partial rotary embeddings, and where
    the two generations would disagree.
    """
    method, geometry = method_from_hf(config)
    if isinstance(method, DynamicNtk) and length is None:
        raise InputError(
            "rope_type",
            "dynamic",
            "its factors follow the input length: give the length to use them at",
        )
    factor_set = method.factor_set(geometry, length)
    *others, last = factor_set.ranges
    extended = max_length(config) > geometry.original_length
    target = max_length(config) if extended else last.factors.target_length
    last = FactorRange(
        up_to=last.up_to, factors=last.factors.model_copy(update={"target_length": target})
    )
    return FactorSet(ranges=(*others, last))


def geometry_from_hf(config: Mapping[str, Any]) -> RopeGeometry:
    """Returns base, head_dim and pretrained window in tokens of a HF config; raises InputError."""
    return method_from_hf(config)[1]


def method_from_hf(config: Mapping[str, Any]) -> tuple[RopeMethod, RopeGeometry]:
    """Returns the scaling method of a HF config with its own settings, and the geometry it applies
    to."""
    parameters = read_rope_parameters(config)
    rope_type = rope_type_of(parameters)
    kind = _KINDS.get(rope_type)
    if kind is None:
        raise InputError("rope_type", rope_type, f"one of {', '.join(_KINDS)}")
    unknown = parameters.keys() - COMMON_KEYS - kind.keys
    if unknown:
        key = min(unknown)
        raise InputError(
            key, parameters[key], f"unknown key for rope_type {rope_type}; known: {_known(kind)}"
        )
    missing = kind.required - parameters.keys()
    if missing:
        raise InputError(min(missing), None, f"rope_type {rope_type} needs it")
    geometry = read_geometry(config, parameters, kind.has_window)
    return kind.build(_Reading(parameters, geometry, max_length(config))), geometry


class _Reading(NamedTuple):
    parameters: Mapping[str, Any]
    geometry: RopeGeometry
    max_length: int

    @property
    def factor(self) -> float | None:
        """The `factor` every scaled rope_type has; None where the config is silent."""
        factor = self.parameters.get("factor")
        if factor is None:
            return None
        if not isinstance(factor, int | float) or not 1 <= factor < math.inf:
            raise InputError("factor", factor, "a finite number of at least 1")
        return float(factor)

    def pick(self, *keys: str) -> dict[str, Any]:
        return {key: self.parameters[key] for key in keys if key in self.parameters}

    @property
    def length_ratio(self) -> float:
        return self.max_length / self.geometry.original_length


class _Kind(NamedTuple):
    """One rope_type: how to build it, its keys, those it cannot do without, and whether it has a
    window of its own."""

    build: Callable[[_Reading], RopeMethod]
    keys: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()

    @property
    def has_window(self) -> bool:
        return ORIGINAL_KEY in self.keys


def _build_yarn(reading: _Reading) -> RopeMethod:
    settings = reading.pick("attention_factor", "mscale", "mscale_all_dim", "truncate")
    betas = {key: value for key, value in reading.pick("beta_fast", "beta_slow").items() if value}
    scale = reading.length_ratio if reading.factor is None else reading.factor
    return build_config(Yarn, {"scale": scale, **settings, **betas}, "the HF config's yarn")


def _build_llama3(reading: _Reading) -> RopeMethod:
    bounds = reading.pick("low_freq_factor", "high_freq_factor")
    return build_config(Llama3, {"factor": reading.factor, **bounds}, "the HF config's llama3")


def _build_longrope(reading: _Reading) -> RopeMethod:
    for key in ("short_factor", "long_factor"):
        _check_list(key, reading)
    attention_factor, factor, ratio = (
        reading.parameters.get("attention_factor"),
        reading.factor,
        reading.length_ratio,
    )
    for key, value in reading.pick(*_MSCALES).items():
        if value != attention_factor:
            raise InputError(
                key,
                value,
                f"vLLM's word for the temperature, and attention_factor is {attention_factor}",
            )
    if factor is not None and attention_factor is None and abs(factor - ratio) > 1e-6 * ratio:
        rule = (
            f"max_position_embeddings/{ORIGINAL_KEY} is {ratio:g}, and transformers 4 and 5 "
            "disagree which one counts"
        )
        raise InputError("factor", factor, f"{rule}: write attention_factor into the config")
    values = {
        "short": reading.parameters["short_factor"],
        "long": reading.parameters["long_factor"],
        "scale": ratio if ratio > 1 else (factor or 1.0),
        "attention_factor": attention_factor,
    }
    return build_config(LongRope, values, "the HF config's longrope")


def _check_list(key: str, reading: _Reading) -> None:
    values, pairs = reading.parameters[key], reading.geometry.num_pairs
    is_list = isinstance(values, list | tuple) and not any(
        isinstance(value, str | bool) for value in values
    )
    if not is_list or len(values) != pairs:
        raise InputError(
            key, values, f"head_dim {reading.geometry.head_dim} needs a list of {pairs} numbers"
        )


def _build_linear(reading: _Reading) -> RopeMethod:
    return build_config(PositionInterpolation, {"scale": reading.factor}, "the HF config's linear")


def _build_dynamic(reading: _Reading) -> RopeMethod:
    return build_config(DynamicNtk, {"factor": reading.factor}, "the HF config's dynamic")


_FACTOR = frozenset({"factor"})
_LLAMA3_KEYS = frozenset({"factor", ORIGINAL_KEY, "low_freq_factor", "high_freq_factor"})
_YARN_KEYS = frozenset({"factor", ORIGINAL_KEY, "attention_factor", "beta_fast", "beta_slow"})
_LONGROPE_LISTS = frozenset({"short_factor", "long_factor"})
_MSCALES = ("short_mscale", "long_mscale")
_LONGROPE_KEYS = _LONGROPE_LISTS | {"factor", "attention_factor", ORIGINAL_KEY, *_MSCALES}
_KINDS = {
    "default": _Kind(lambda reading: NoScaling()),
    "linear": _Kind(_build_linear, _FACTOR, _FACTOR),
    "dynamic": _Kind(_build_dynamic, _FACTOR, _FACTOR),
    "yarn": _Kind(_build_yarn, _YARN_KEYS | {"mscale", "mscale_all_dim", "truncate"}),
    "llama3": _Kind(_build_llama3, _LLAMA3_KEYS, _LLAMA3_KEYS),
    "longrope": _Kind(_build_longrope, _LONGROPE_KEYS, _LONGROPE_LISTS),
}


def _known(kind: _Kind) -> str:
    return ", ".join(sorted(kind.keys)) or "none"
