"""Collecting the rotary settings of a Hugging Face config from the places that may hold them.

transformers 4 writes `rope_scaling` and a top-level `rope_theta`, transformers 5 writes
`rope_parameters` with everything in it, and files in the wild hold both. What stands twice must
agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.config import build_config, parse_length
from megatron_longrope.errors import InputError

ORIGINAL_KEY = "original_max_position_embeddings"
"""The key of the pretrained window, in tokens."""
COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
"""Keys that rotary settings of any rope_type may have."""


def read_rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rotary settings of `config`, from whichever place holds them, without nulls.

    Raises InputError for an unknown `rope_…` key, for partial rotary embeddings, and where
    `rope_scaling` and `rope_parameters` disagree.
    """
    for key in config:
        known = key in ("rope_theta", "rope_scaling", "rope_parameters")
        if key.startswith("rope_") and not known and config[key] not in (None, False):
            raise InputError(key, config[key], "a rotary setting this project does not know")
    old, new = (_settings(config, key) for key in ("rope_scaling", "rope_parameters"))
    if old is not None and new is not None and _comparable(old) != _comparable(new):
        raise InputError("rope_scaling", old, "differs from rope_parameters in the same config")
    parameters = dict(new if new is not None else old or {})
    _refuse_partial(config)
    _refuse_partial(parameters)
    return parameters


def _settings(config: Mapping[str, Any], field: str) -> dict[str, Any] | None:
    values = config.get(field)
    if not values:
        return None
    if not isinstance(values, Mapping):
        raise InputError(field, values, "a mapping of rotary settings")
    if any(isinstance(value, Mapping) for value in values.values()):
        raise InputError(
            field, sorted(values), "one rotary embedding per layer type is not supported"
        )
    return {key: value for key, value in values.items() if value is not None}


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings without the keys that only one of the two places holds."""
    rest = {key: value for key, value in settings.items() if key not in COMMON_KEYS}
    return {"rope_type": rope_type_of(settings), **rest}


def rope_type_of(settings: Mapping[str, Any]) -> str:
    """Returns the rope_type of rotary settings, `default` where they name none.

    Older configs call the key `type`. Raises InputError where both stand there and disagree.
    """
    kinds = {str(settings[key]) for key in ("rope_type", "type") if key in settings} or {"default"}
    if len(kinds) > 1:
        raise InputError("rope_type", settings["rope_type"], f"type says {settings['type']}")
    return kinds.pop()


def _refuse_partial(values: Mapping[str, Any]) -> None:
    part = values.get("partial_rotary_factor")
    if part is not None and part != 1:
        raise InputError(
            "partial_rotary_factor", part, "all dimensions of a head must be rotated (1.0)"
        )


def read_geometry(
    config: Mapping[str, Any], parameters: Mapping[str, Any], has_own_window: bool
) -> RopeGeometry:
    """Returns the rotary base, head_dim and pretrained window of a config.

    `has_own_window`: whether this rope_type reads original_max_position_embeddings; for every other
    one the window is max_position_embeddings. Raises InputError for what is missing or disagrees.
    """
    window = _window(config, parameters) if has_own_window else max_length(config)
    values = {
        "base": _base(config, parameters),
        "head_dim": _head_dim(config),
        "original_length": window,
    }
    return build_config(RopeGeometry, values, "the HF config")


def _window(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> int:
    """Returns the pretrained window in tokens of a rope_type that may give it itself.

    It stands at the top level or among the rotary settings; else it is max_position_embeddings.
    """
    said = {
        parse_length(values[ORIGINAL_KEY], ORIGINAL_KEY)
        for values in (config, parameters)
        if values.get(ORIGINAL_KEY)
    }
    if len(said) > 1:
        raise InputError(
            ORIGINAL_KEY,
            config[ORIGINAL_KEY],
            f"the rotary settings say {parameters[ORIGINAL_KEY]}",
        )
    window = said.pop() if said else max_length(config)
    if window > max_length(config):
        raise InputError(
            ORIGINAL_KEY, window, f"at most max_position_embeddings ({max_length(config)})"
        )
    return window


def _base(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> object:
    for values in (config, parameters):
        if not isinstance(values.get("rope_theta"), int | float | None):
            raise InputError("rope_theta", values["rope_theta"], "a number")
    said = {
        values["rope_theta"]
        for values in (config, parameters)
        if values.get("rope_theta") is not None
    }
    if len(said) > 1:
        raise InputError(
            "rope_theta",
            config["rope_theta"],
            f"the rotary settings say {parameters['rope_theta']}",
        )
    # The default of a config without rope_theta differs between model families. The architectures
    # in `model` know it and write it into the config before it is read here.
    if not said:
        raise InputError("rope_theta", None, f"a {config.get('model_type')} config must say it")
    return said.pop()


def _head_dim(config: Mapping[str, Any]) -> object:
    if config.get("head_dim"):
        return config["head_dim"]
    hidden = parse_length(config.get("hidden_size") or 0, "hidden_size")
    heads = parse_length(config.get("num_attention_heads") or 0, "num_attention_heads")
    return hidden // heads


def max_length(config: Mapping[str, Any]) -> int:
    """Returns max_position_embeddings in tokens; raises InputError where it is missing."""
    return parse_length(config.get("max_position_embeddings") or 0, "max_position_embeddings")
