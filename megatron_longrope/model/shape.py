"""The sizes of a Llama-shaped model, read from a Hugging Face config and nothing dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from megatron_longrope.config import Length, StrictConfig
from megatron_longrope.errors import InputError

VOCABULARY_MULTIPLE = 128
"""Embedding rows are padded to this under every layout, so that any layout loads any checkpoint."""

_ARCHITECTURES = {"llama": "LlamaForCausalLM"}
_MUST_BE = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "pretraining_tp": 1}


class ModelShape(StrictConfig):
    """What a Llama-shaped model is made of. RoPE scaling is not here: it travels as a factor set."""

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

    @property
    def padded_vocab_size(self) -> int:
        """Embedding rows with padding; the padding is masked out of every loss and cut on export."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def num_parameters(self) -> int:
        """Weights as Hugging Face counts them: tied embeddings once, no padding."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def forward_flops(self, length: int) -> float:
        """Floating-point operations of one forward pass over `length` tokens, causal attention counted by half."""
        projections = self.num_parameters - self.vocab_size * self.hidden_size * (0 if self.tie_embeddings else 1)
        attention = 2 * self.num_layers * self.num_heads * self.head_dim * length
        return length * (2.0 * projections + attention)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelShape:
        """Returns the shape in an HF `config.json`; raises InputError for an architecture or option we do not carry."""
        kind = config.get("model_type")
        if kind not in _ARCHITECTURES:
            raise InputError("model_type", kind, f"supported here: {', '.join(sorted(_ARCHITECTURES))}")
        for key, value in _MUST_BE.items():
            if config.get(key, value) not in (value, None):
                raise InputError(f"config.{key}", config[key], f"only {value} is supported for {kind}")
        heads = _need(config, "num_attention_heads")
        rope = config.get("rope_parameters") or {}
        return cls(
            num_layers=_need(config, "num_hidden_layers"),
            hidden_size=_need(config, "hidden_size"),
            ffn_hidden_size=_need(config, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or _need(config, "hidden_size") // heads,
            vocab_size=_need(config, "vocab_size"),
            context_length=_context_length(config),
            rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            norm_epsilon=config.get("rms_norm_eps", 1e-6),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            initializer_range=config.get("initializer_range", 0.02),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the config keys of this shape for Hugging Face's Llama, without RoPE."""
        return {
            "architectures": [_ARCHITECTURES["llama"]],
            "model_type": "llama",
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
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "use_cache": True,
        }


def _need(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise InputError(f"config.{key}", value, "must be a positive whole number")
    return value


def _context_length(config: Mapping[str, Any]) -> int:
    """The pretrained window: where RoPE was scaled before, the length before scaling."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    original = scaling.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return int(original or _need(config, "max_position_embeddings"))
