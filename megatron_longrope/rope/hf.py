"""Rotary settings of Hugging Face configs, both generations, to factor sets.

transformers 4 keeps them in `rope_scaling` beside `rope_theta`, transformers 5 in `rope_parameters`. Whatever this
module does not know it refuses: a setting dropped on the way would change the model without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from megatron_longrope.config import build_config, parse_length
from megatron_longrope.errors import InputError
from megatron_longrope.rope.factors import FactorRange, FactorSet
from megatron_longrope.rope.geometry import RopeGeometry
from megatron_longrope.rope.hf_export import hf_rope_config
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

_ORIGINAL = "original_max_position_embeddings"
_COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_DEFAULT_BASE = 10_000.0
_DEFAULT_BASE_MODELS = (None, "llama", "mistral", "qwen2", "qwen3", "phi3")
"""Model types whose base transformers takes to be 10000 where the config is silent (LLaMA 1 and 2)."""


def factor_set_from_hf(config: Mapping[str, Any], length: int | None = None) -> FactorSet:
    """Returns the factors of a HF model config (`config.json` as a dictionary).

    `length` in tokens is needed for `dynamic` alone, whose factors beyond the window follow the input. Raises
    InputError for an unknown rope_type or key, partial rotary embeddings, and where the two generations would disagree.
    """
    method, geometry = method_from_hf(config)
    if isinstance(method, DynamicNtk) and length is None:
        raise InputError("rope_type", "dynamic", "its factors follow the input length: give the length to use them at")
    factor_set = method.factor_set(geometry, length)
    *others, last = factor_set.ranges
    target = max(last.factors.target_length, _max_length(config))
    last = FactorRange(up_to=last.up_to, factors=last.factors.model_copy(update={"target_length": target}))
    return FactorSet(ranges=(*others, last))


def geometry_from_hf(config: Mapping[str, Any]) -> RopeGeometry:
    """Returns base, head_dim and pretrained window in tokens of a HF config; raises InputError."""
    return method_from_hf(config)[1]


def method_from_hf(config: Mapping[str, Any]) -> tuple[RopeMethod, RopeGeometry]:
    """Returns the scaling method of a HF config with its own settings, and the geometry it applies to."""
    parameters = _rope_parameters(config)
    rope_type = _rope_type(parameters)
    kind = _KINDS.get(rope_type)
    if kind is None:
        raise InputError("rope_type", rope_type, f"one of {', '.join(_KINDS)}")
    unknown = parameters.keys() - _COMMON_KEYS - kind.keys
    if unknown:
        key = min(unknown)
        raise InputError(key, parameters[key], f"unknown key for rope_type {rope_type}; known: {_known(kind)}")
    missing = kind.required - parameters.keys()
    if missing:
        raise InputError(min(missing), None, f"rope_type {rope_type} needs it")
    geometry = _geometry(config, parameters, kind)
    return kind.build(_Reading(parameters, geometry, _max_length(config))), geometry


class _Reading(NamedTuple):
    parameters: Mapping[str, Any]
    geometry: RopeGeometry
    max_length: int

    def pick(self, *keys: str) -> dict[str, Any]:
        return {key: self.parameters[key] for key in keys if key in self.parameters}

    @property
    def length_ratio(self) -> float:
        return self.max_length / self.geometry.original_length


class _Kind(NamedTuple):
    """One rope_type: how to build it, its keys, those it cannot do without, and whether it has a window of its own."""

    build: Callable[[_Reading], RopeMethod]
    keys: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()

    @property
    def has_window(self) -> bool:
        return _ORIGINAL in self.keys


def _build_yarn(reading: _Reading) -> RopeMethod:
    settings = reading.pick("attention_factor", "mscale", "mscale_all_dim", "truncate")
    betas = {key: value for key, value in reading.pick("beta_fast", "beta_slow").items() if value}
    scale = reading.parameters.get("factor", reading.length_ratio)
    return build_config(Yarn, {"scale": scale, **settings, **betas}, "the HF config's yarn")


def _build_llama3(reading: _Reading) -> RopeMethod:
    return build_config(Llama3, reading.pick("factor", "low_freq_factor", "high_freq_factor"), "the HF config's llama3")


def _build_longrope(reading: _Reading) -> RopeMethod:
    attention_factor, factor = reading.parameters.get("attention_factor"), reading.parameters.get("factor")
    ratio = reading.length_ratio
    if factor is not None and attention_factor is None and abs(factor - ratio) > 1e-6 * ratio:
        rule = f"max_position_embeddings/{_ORIGINAL} is {ratio:g}, and transformers 4 and 5 disagree which one counts"
        raise InputError("factor", factor, f"{rule}: write attention_factor into the config")
    values = {
        "short": reading.parameters["short_factor"],
        "long": reading.parameters["long_factor"],
        "scale": ratio if ratio > 1 else (factor or 1.0),
        "attention_factor": attention_factor,
    }
    return build_config(LongRope, values, "the HF config's longrope")


def _build_linear(reading: _Reading) -> RopeMethod:
    return build_config(PositionInterpolation, {"scale": reading.parameters["factor"]}, "the HF config's linear")


def _build_dynamic(reading: _Reading) -> RopeMethod:
    return build_config(DynamicNtk, {"factor": reading.parameters["factor"]}, "the HF config's dynamic")


_FACTOR = frozenset({"factor"})
_LLAMA3_KEYS = frozenset({"factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"})
_YARN_KEYS = frozenset({"factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow"})
_LONGROPE_LISTS = frozenset({"short_factor", "long_factor"})
_KINDS = {
    "default": _Kind(lambda reading: NoScaling()),
    "linear": _Kind(_build_linear, _FACTOR, _FACTOR),
    "dynamic": _Kind(_build_dynamic, _FACTOR, _FACTOR),
    "yarn": _Kind(_build_yarn, _YARN_KEYS | {"mscale", "mscale_all_dim", "truncate"}),
    "llama3": _Kind(_build_llama3, _LLAMA3_KEYS, _LLAMA3_KEYS),
    "longrope": _Kind(_build_longrope, _LONGROPE_LISTS | {"factor", "attention_factor", _ORIGINAL}, _LONGROPE_LISTS),
}


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of either generation, without empty ones; both present must say the same."""
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
        raise InputError(field, sorted(values), "one rotary embedding per layer type is not supported")
    return {key: value for key, value in values.items() if value is not None}


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in settings.items() if key not in _COMMON_KEYS}
    return {"rope_type": _rope_type(settings), **rest}


def _rope_type(settings: Mapping[str, Any]) -> str:
    kinds = {str(settings[key]) for key in ("rope_type", "type") if key in settings} or {"default"}
    if len(kinds) > 1:
        raise InputError("rope_type", settings["rope_type"], f"type says {settings['type']}")
    return kinds.pop()


def _refuse_partial(values: Mapping[str, Any]) -> None:
    part = values.get("partial_rotary_factor")
    if part is not None and part != 1:
        raise InputError("partial_rotary_factor", part, "all dimensions of a head must be rotated (1.0)")


def _geometry(config: Mapping[str, Any], parameters: Mapping[str, Any], kind: _Kind) -> RopeGeometry:
    window = _window(config, parameters) if kind.has_window else _max_length(config)
    values = {"base": _base(config, parameters), "head_dim": _head_dim(config), "original_length": window}
    return build_config(RopeGeometry, values, "the HF config")


def _window(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> int:
    """Returns the pretrained window: said at top level or among the rotary settings, else max_position_embeddings."""
    said = {parse_length(values[_ORIGINAL], _ORIGINAL) for values in (config, parameters) if values.get(_ORIGINAL)}
    if len(said) > 1:
        raise InputError(_ORIGINAL, config[_ORIGINAL], f"the rotary settings say {parameters[_ORIGINAL]}")
    window = said.pop() if said else _max_length(config)
    if window > _max_length(config):
        raise InputError(_ORIGINAL, window, f"at most max_position_embeddings ({_max_length(config)})")
    return window


def _base(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> object:
    said = {values["rope_theta"] for values in (config, parameters) if values.get("rope_theta") is not None}
    if len(said) > 1:
        raise InputError("rope_theta", config["rope_theta"], f"the rotary settings say {parameters['rope_theta']}")
    if not said and config.get("model_type") not in _DEFAULT_BASE_MODELS:
        raise InputError("rope_theta", None, f"a {config.get('model_type')} config must say it")
    return said.pop() if said else _DEFAULT_BASE


def _head_dim(config: Mapping[str, Any]) -> object:
    if config.get("head_dim"):
        return config["head_dim"]
    hidden, heads = (parse_length(config.get(key) or 0, key) for key in ("hidden_size", "num_attention_heads"))
    return hidden // heads


def _max_length(config: Mapping[str, Any]) -> int:
    return parse_length(config.get("max_position_embeddings") or 0, "max_position_embeddings")


def _known(kind: _Kind) -> str:
    return ", ".join(sorted(kind.keys)) or "none"
