"""Reading the rotary settings of Hugging Face configs: the scaling method and its factors.

transformers 4 keeps the settings in `rope_scaling` beside `rope_theta`, transformers 5 in
`rope_parameters`. A setting that no scaling method knows is refused: ignoring it would silently
change what the model computes.
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

    `length` in tokens is needed for rope_type `dynamic` alone, whose factors beyond the window
    depend on the input length. Raises InputError for an unknown rope_type or key, for partial
    rotary embeddings, and where transformers 4 and 5 would read different settings.

    >>> scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    >>> config = {"head_dim": 4, "max_position_embeddings": 64, "rope_parameters": scaling}
    >>> factor_set_from_hf(config).for_length(128).rescale
    (2.0, 2.0)
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
    # max_position_embeddings beyond the window is the length the model was extended to; else the
    # config is silent about it and the method's own target, such as factor · window, holds
    extended = max_length(config) > geometry.original_length
    target = max_length(config) if extended else last.factors.target_length
    last = FactorRange(
        up_to=last.up_to, factors=last.factors.model_copy(update={"target_length": target})
    )
    return FactorSet(ranges=(*others, last))


def geometry_from_hf(config: Mapping[str, Any]) -> RopeGeometry:
    """Returns the rotary base, head_dim and pretrained window in tokens of a HF config.

    Raises InputError as `method_from_hf` does.
    """
    return method_from_hf(config)[1]


def method_from_hf(config: Mapping[str, Any]) -> tuple[RopeMethod, RopeGeometry]:
    """Returns the scaling method of a HF config with its settings, and the model's geometry.

    Raises InputError for an unknown rope_type, for a key it does not know and one it lacks.
    """
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
    """Returns the method whose rope_type in transformers is `name`, and the keys it reads."""
    known = {kind.hf.name: (kind, kind.hf) for kind in METHODS.values() if kind.hf is not None}
    if name not in known:
        raise InputError("rope_type", name, f"one of {', '.join(known)}")
    return known[name]
