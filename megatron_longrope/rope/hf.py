"""Rotary settings of Hugging Face configs, both generations, to factor sets.

transformers 4 keeps them in `rope_scaling` beside `rope_theta`, transformers 5 in
`rope_parameters`. Whatever no scaling method knows is refused: a setting dropped on the way would
change the model without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_longrope.artifacts.factors import FactorRange, FactorSet
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.errors import InputError
from megatron_longrope.rope.hf_reading import HfReading, HfRopeType
from megatron_longrope.rope.hf_settings import (
    COMMON_KEYS,
    max_length,
    read_geometry,
    read_rope_parameters,
    rope_type_of,
)
from megatron_longrope.rope.methods import METHODS, RopeMethod


def factor_set_from_hf(config: Mapping[str, Any], length: int | None = None) -> FactorSet:
    """Returns the factors of a HF model config (`config.json` as a dictionary).

    `length` in tokens is needed for `dynamic` alone, whose factors beyond the window follow the
    input. Raises InputError for an unknown rope_type or key, partial rotary embeddings, and where
    the two generations would disagree.
    """
    method, geometry = method_from_hf(config)
    if method.follows_length and length is None:
        raise InputError(
            "rope_type",
            rope_type_of(read_rope_parameters(config)),
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
    kind, rope_type = _kind_of(rope_type_of(parameters))
    unknown = parameters.keys() - COMMON_KEYS - rope_type.keys
    if unknown:
        key, known = min(unknown), ", ".join(sorted(rope_type.keys)) or "none"
        raise InputError(
            key, parameters[key], f"unknown key for rope_type {rope_type.name}; known: {known}"
        )
    missing = rope_type.required - parameters.keys()
    if missing:
        raise InputError(min(missing), None, f"rope_type {rope_type.name} needs it")
    geometry = read_geometry(config, parameters, rope_type.has_window)
    return kind.from_hf(HfReading(parameters, geometry, max_length(config))), geometry


def _kind_of(name: str) -> tuple[type[RopeMethod], HfRopeType]:
    """Returns the method transformers calls `name`, and what it reads."""
    known = {kind.hf.name: (kind, kind.hf) for kind in METHODS.values() if kind.hf is not None}
    if name not in known:
        raise InputError("rope_type", name, f"one of {', '.join(known)}")
    return known[name]
