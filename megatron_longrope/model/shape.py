"""The sizes and options of a model, read from a Hugging Face config and nothing dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from megatron_longrope.config import Length, StrictConfig
from megatron_longrope.errors import InputError
from megatron_longrope.model.architectures.families import (
    ARCHITECTURES,
    COMMON_MUST_BE,
    Architecture,
    ArchitectureName,
    attention_settings,
    read_rope_free_layers,
)
from megatron_longrope.rope import geometry_from_hf

VOCABULARY_MULTIPLE = 128
"""Embedding rows are padded to this under every layout, so that any layout loads any checkpoint."""

_MAX_LAYERS = 10_000
"""More than any model has; a damaged config may say anything, and tables of weights are made from
it."""


class ModelShape(StrictConfig):
    """What a model is made of. RoPE scaling is not here: it travels as a factor set."""

    num_layers: PositiveInt
    hidden_size: PositiveInt
    ffn_hidden_size: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    context_length: Length
    rope_base: PositiveFloat = 10000.0
    norm_epsilon: PositiveFloat = 1e-5
    tie_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02
    architecture: ArchitectureName = "llama"
    attention_windows: tuple[PositiveInt | None, ...] = ()
    """Tokens each layer's attention reaches back, itself included; None: all of them. Empty: None
    everywhere."""
    rope_free_layers: tuple[NonNegativeInt, ...] = ()
    """Layers, counted from 0, whose queries and keys are not rotated."""

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if len(self.attention_windows) not in (0, self.num_layers):
            raise ValueError(
                f"attention_windows has {len(self.attention_windows)} entries for "
                f"{self.num_layers} layers"
            )
        if any(layer >= self.num_layers for layer in self.rope_free_layers):
            raise ValueError(
                f"rope_free_layers {self.rope_free_layers} are not all of {self.num_layers} layers"
            )
        return self

    @property
    def traits(self) -> Architecture:
        """What is common to the model's family."""
        return ARCHITECTURES[self.architecture]

    def window(self, layer: int) -> int | None:
        """Returns how many tokens the attention of `layer` (from 0) reaches back; None: all."""
        return self.attention_windows[layer] if self.attention_windows else None

    @property
    def padded_vocab_size(self) -> int:
        """Embedding rows with padding; the padding is masked out of every loss and cut on
        export."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def num_parameters(self) -> int:
        """Weights as Hugging Face counts them: tied embeddings once, no padding."""
        projected = self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        attention = self.hidden_size * (projected + self.head_dim * self.num_heads)
        attention += projected * self.traits.qkv_bias + 2 * self.head_dim * self.traits.qk_norm
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def forward_flops(self, length: int) -> float:
        """Floating-point operations of one forward pass over `length` tokens, causal attention
        counted by half."""
        projections = self.num_parameters - self.vocab_size * self.hidden_size * (
            0 if self.tie_embeddings else 1
        )
        reach = sum(_mean_reach(length, self.window(layer)) for layer in range(self.num_layers))
        return length * (2.0 * projections + 4 * self.num_heads * self.head_dim * reach)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, keep_windows: bool = True) -> Self:
        """Returns the shape in an HF `config.json`; raises InputError for an architecture or option
        we do not carry.

        `keep_windows=False` switches sliding windows off: every layer attends to everything before
        it.
        """
        kind = config.get("model_type")
        if kind not in ARCHITECTURES:
            raise InputError(
                "model_type", kind, f"supported here: {', '.join(sorted(ARCHITECTURES))}"
            )
        traits = ARCHITECTURES[kind]
        _check_options(kind, traits, config)
        layers, heads = (
            _need(config, "num_hidden_layers", _MAX_LAYERS),
            _need(config, "num_attention_heads"),
        )
        geometry = geometry_from_hf(config)
        kv_heads = (
            heads
            if config.get("num_key_value_heads") is None
            else _need(config, "num_key_value_heads")
        )
        if heads % kv_heads:
            raise InputError(
                "config.num_attention_heads",
                heads,
                f"a multiple of num_key_value_heads ({kv_heads})",
            )
        return cls(
            num_layers=layers,
            hidden_size=_need(config, "hidden_size"),
            ffn_hidden_size=_need(config, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=geometry.head_dim,
            vocab_size=_need(config, "vocab_size"),
            context_length=geometry.original_length,
            rope_base=geometry.base,
            norm_epsilon=_positive(config, "rms_norm_eps", traits.norm_epsilon),
            tie_embeddings=_flag(config, "tie_word_embeddings", traits.ties_by_default),
            initializer_range=_positive(config, "initializer_range", 0.02),
            architecture=kind,
            attention_windows=traits.read_windows(config, layers) if keep_windows else (),
            rope_free_layers=read_rope_free_layers(kind, config, layers),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the config keys of this shape for its family in transformers, without RoPE."""
        must_be = {**COMMON_MUST_BE, **self.traits.must_be}
        return {
            "architectures": [self.traits.hf_class],
            "model_type": self.architecture,
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_hidden_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": self.norm_epsilon,
            "tie_word_embeddings": self.tie_embeddings,
            "initializer_range": self.initializer_range,
            "use_cache": True,
            **{
                key: value
                for key, value in must_be.items()
                if value is not None and key != "pretraining_tp"
            },
            **self.hf_attention(),
        }

    def hf_attention(self) -> dict[str, Any]:
        """Returns the HF config keys for windows and layers without RoPE; InputError for what the
        family cannot say."""
        return dict(
            attention_settings(
                self.architecture, self.attention_windows, self.rope_free_layers, self.num_layers
            )
        )


def _mean_reach(length: int, window: int | None) -> float:
    """Keys a query attends to on average over `length` tokens."""
    reach = length if window is None else min(window, length)
    return reach - reach * reach / (2 * length)


def _check_options(kind: str, traits: Architecture, config: Mapping[str, Any]) -> None:
    for key, value in {**COMMON_MUST_BE, **traits.must_be}.items():
        if config.get(key) not in (value, None):
            raise InputError(f"config.{key}", config[key], f"only {value} is supported for {kind}")
    for key in traits.must_say:
        if config.get(key) is None:
            raise InputError(f"config.{key}", None, f"a {kind} config must say it")
    said = config.get("rope_parameters") or config.get("rope_scaling")
    rope_type = (
        (said.get("rope_type") or said.get("type") or "default")
        if isinstance(said, Mapping)
        else "default"
    )
    if traits.rope_types is not None and rope_type not in traits.rope_types:
        raise InputError(
            "rope_type",
            rope_type,
            f"transformers' {kind} knows {', '.join(sorted(traits.rope_types))}",
        )


def _need(config: Mapping[str, Any], key: str, at_most: int = 1 << 40) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= at_most:
        raise InputError(f"config.{key}", value, f"must be a whole number from 1 to {at_most}")
    return value


def _positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise InputError(f"config.{key}", value, "must be a number between 0 and 1")
    return float(value)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"config.{key}", value, "must be true or false")
    return default if value is None else value
