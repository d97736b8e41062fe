"""Translates the `llama.*` keys of a GGUF file to an HF config; unknown keys are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from checkpoints_tools.gguf.names import ARCHITECTURE, LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures.llama import Llama

_SHAPE_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_READ_KEYS = {
    *_SHAPE_KEYS,
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "vocab_size",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
}
_ORIGINAL = "original_max_position_embeddings"
_SCALING = "rope.scaling."
_SCALING_KEYS = {
    "none": set(),
    "linear": {"factor"},
    "longrope": {"attn_factor", "original_context_length"},
    "yarn": {
        "factor",
        "attn_factor",
        "original_context_length",
        "yarn_beta_fast",
        "yarn_beta_slow",
    },
}
_NEUTRAL = {"factor": (0.0, 1.0), "attn_factor": (1.0,), "finetuned": (True, False)}
"""Values of keys that may stand beside a scaling type that does not use them.

They change nothing: factors of 1 (0 is llama.cpp's "not set"), and `finetuned`, which llama.cpp
does not compute with.
"""
_TOKEN_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
ReadFactors = Callable[[str], list[float] | None]
"""A function that reads a RoPE factor tensor of the file by name; None where there is none."""


def hf_config(
    metadata: Mapping[str, Any], tied: bool, read_factors: ReadFactors, source: Path
) -> dict[str, Any]:
    """Returns the config.json of a GGUF file's keys, readable by transformers 4 and 5.

    Raises InputError for an architecture other than llama, for keys that are missing or unknown,
    and for RoPE scaling that a Hugging Face config cannot express.

    Args:
        metadata: all keys of the file.
        tied: whether the file has no output weights of its own.
        read_factors: reads a RoPE factor tensor of the file.
        source: the file, for error messages.
    """
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise InputError(
            "general.architecture", architecture, f"{ARCHITECTURE} is supported ({source})"
        )
    if metadata.get("split.count", 1) > 1:
        raise InputError(
            "split.count",
            metadata["split.count"],
            f"one file of several: merge them first ({source})",
        )
    keys = _Keys(metadata, source)
    keys.refuse_unknown()
    shape = _shape(keys, metadata, tied)
    rope = _rope(keys, shape, read_factors)
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _TOKEN_IDS.items()}
    return shape.to_hf() | rope | {name: index for name, index in ids.items() if index is not None}


class _Keys:
    """The `llama.*` keys of a file, read with their types checked."""

    def __init__(self, metadata: Mapping[str, Any], source: Path) -> None:
        self.source = source
        self.values = {
            k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")
        }

    def refuse_unknown(self) -> None:
        """Raises InputError for a key that this module does not read; scaling keys come later."""
        unknown = {key for key in self.values if not key.startswith(_SCALING)} - _READ_KEYS
        if unknown:
            key = min(unknown)
            raise self.wrong(
                key, "a key this release does not know; dropping it could change the model"
            )

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns a positive whole number; raises InputError for anything else."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise self.wrong(key, "must be a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive finite number; raises InputError for anything else."""
        value = self.values.get(key, default)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not 0 < value < math.inf
        ):
            raise self.wrong(key, "must be a positive number")
        return float(value)

    def wrong(self, key: str, rule: str) -> InputError:
        """Returns the error for a key, with its value and the rule it breaks."""
        shown = self.values.get(key)
        return InputError(
            f"llama.{key}", shown if len(str(shown)) < 80 else "…", f"{rule} ({self.source})"
        )


def _shape(keys: _Keys, metadata: Mapping[str, Any], tied: bool) -> ModelShape:
    values: dict[str, Any] = {name: keys.whole(key) for key, name in _SHAPE_KEYS.items()}
    tokens = metadata.get("tokenizer.ggml.tokens")
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    head_dim = keys.whole("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.whole(key, head_dim) != head_dim:
            raise keys.wrong(key, f"must be the length of a head, {head_dim}")
    config = values | {
        "model_type": Llama.model_type,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": keys.whole("vocab_size", len(tokens) if isinstance(tokens, list) else None),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": tied,
    }
    return ModelShape.from_hf(config)


def _rope(keys: _Keys, shape: ModelShape, read_factors: ReadFactors) -> dict[str, Any]:
    """Returns the RoPE keys of a config.json; without a type, scaling is linear as in llama.cpp."""
    kind = keys.values.get(f"{_SCALING}type", "linear")
    if kind not in _SCALING_KEYS:
        raise keys.wrong(f"{_SCALING}type", f"one of {', '.join(_SCALING_KEYS)}")
    _refuse_scaling_keys(keys, kind)
    settings: dict[str, Any] | None
    if kind == "longrope":
        settings = _longrope(keys, read_factors)
    else:
        readers = {"linear": _linear, "yarn": _yarn}
        settings = readers[kind](keys) if kind in readers else None
        settings = _with_llama3(keys, settings, read_factors)
    if settings is None:
        default = {"rope_type": "default", "rope_theta": shape.rope_base}
        return {"rope_theta": shape.rope_base, "rope_scaling": None, "rope_parameters": default}
    window = {_ORIGINAL: settings[_ORIGINAL]} if _ORIGINAL in settings else {}
    return window | {
        "rope_theta": shape.rope_base,
        "rope_scaling": settings,
        "rope_parameters": settings | {"rope_theta": shape.rope_base},
    }


def _refuse_scaling_keys(keys: _Keys, kind: str) -> None:
    said = {key.removeprefix(_SCALING) for key in keys.values if key.startswith(_SCALING)}
    for key in sorted(said - {"type"} - _SCALING_KEYS[kind]):
        if keys.values[_SCALING + key] not in _NEUTRAL.get(key, ()):
            if key == "original_context_length" and kind in ("none", "linear"):
                continue  # llama.cpp does not read it for these types
            raise keys.wrong(_SCALING + key, f"not known for scaling type {kind}")
    if kind != "linear" and "rope.scale_linear" in keys.values:
        raise keys.wrong("rope.scale_linear", f"not known for scaling type {kind}")


def _linear(keys: _Keys) -> dict[str, Any] | None:
    names = (f"{_SCALING}factor", "rope.scale_linear")  # the latter is the older key
    said = [key for key in names if keys.values.get(key, 0.0) != 0.0]
    factor = keys.number(said[0]) if said else 1.0
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _yarn(keys: _Keys) -> dict[str, Any]:
    factor = keys.number(f"{_SCALING}factor")
    # YaRN's own 0.1·ln s + 1 (arXiv 2309.00071), which llama.cpp multiplies by attn_factor
    own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    attention_factor = own * keys.number(f"{_SCALING}attn_factor", 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "attention_factor": attention_factor,
        "beta_fast": keys.number(f"{_SCALING}yarn_beta_fast", 32.0),
        "beta_slow": keys.number(f"{_SCALING}yarn_beta_slow", 1.0),
        _ORIGINAL: keys.whole(f"{_SCALING}original_context_length", keys.whole("context_length")),
    }


def _longrope(keys: _Keys, read_factors: ReadFactors) -> dict[str, Any]:
    long, short = read_factors(LONG_FACTORS), read_factors(SHORT_FACTORS)
    if long is None or short is None or read_factors(LLAMA3_FACTORS) is not None:
        raise keys.wrong(
            f"{_SCALING}type", f"needs the tensors {LONG_FACTORS} and {SHORT_FACTORS}, and no other"
        )
    return _as_longrope(keys, short, long, keys.number(f"{_SCALING}attn_factor", 1.0))


def _with_llama3(
    keys: _Keys, settings: dict[str, Any] | None, read_factors: ReadFactors
) -> dict[str, Any] | None:
    """Returns the scaling `settings`, or those of Llama 3.1's λ where the file holds them.

    GGUF stores Llama 3.1's scaling as a tensor of λ without the formula's parameters. HF's
    `longrope` with the same λ for short and long inputs expresses it exactly.
    """
    unused = [name for name in (LONG_FACTORS, SHORT_FACTORS) if read_factors(name) is not None]
    factors = read_factors(LLAMA3_FACTORS)
    if unused or (factors is not None and settings is not None):
        name = unused[0] if unused else LLAMA3_FACTORS
        raise keys.wrong(f"{_SCALING}type", f"the file holds {name}, which does not go with it")
    return settings if factors is None else _as_longrope(keys, factors, factors, 1.0)


def _as_longrope(
    keys: _Keys, short: list[float], long: list[float], attention_factor: float
) -> dict[str, Any]:
    context = keys.whole("context_length")
    window = keys.whole(f"{_SCALING}original_context_length", context)
    if window > context:
        raise keys.wrong(
            f"{_SCALING}original_context_length", f"at most the context length, {context}"
        )
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        _ORIGINAL: window,
        "attention_factor": attention_factor,
        "factor": context / window,
    }
