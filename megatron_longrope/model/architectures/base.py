"""What a model family is: its config, its Megatron-LM arguments and its weight table.

A family is one file beside this one: a subclass of `Architecture`, registered under its
`model_type`. Where a config leaves a setting out, transformers assumes a default that differs from
family to family; each default stands once, in its family's file. A setting that our model cannot do
is refused by name. docs/extending.md shows how to write a family.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_longrope.errors import InputError
from megatron_longrope.model.architectures.settings import (
    Config,
    flag,
    short,
    small_number,
    whole_number,
)
from megatron_longrope.model.architectures.weights import (
    OUTPUT,
    Q_NORM,
    QKV_BIAS,
    WeightRule,
)
from megatron_longrope.model.architectures.windows import Windows
from megatron_longrope.registry import Registry
from megatron_longrope.rope import geometry_from_hf

if TYPE_CHECKING:
    from megatron_longrope.model.shape import ModelShape

MAX_LAYERS = 10_000
"""Most layers that a config may have: more than any model, fewer than would fill the memory.

A table of weights is made from the number, and a damaged config may have any number in it.
"""
COMMON_ONLY: dict[str, object] = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "quantization_config": None,
}
"""Settings that most families' configs have, with the one value that our model can do."""


class Architecture:
    """A model family of transformers; this base reads and writes what Llama-like families share.

    A family sets the class attributes that differ and overrides the methods that do.
    """

    model_type: ClassVar[str]
    """Name of the family in configs of transformers and in our checkpoints' descriptions."""
    hf_class: ClassVar[str]
    """Name of the class with which transformers runs such a model."""
    weights: ClassVar[tuple[WeightRule, ...]]
    """Which Hugging Face weights make which Megatron weight, in the order of the model."""
    only: ClassVar[Mapping[str, object]] = COMMON_ONLY
    """Settings with the one value that our model can do; another value is refused."""
    unwritten: ClassVar[Collection[str]] = ()
    """Settings of `only` that we do not write, because transformers no longer has them."""
    must_say: ClassVar[tuple[str, ...]] = ()
    """Settings that a config must contain: their default in transformers is one model's size."""
    norm_epsilon: ClassVar[float] = 1e-6
    """Epsilon of the norms where a config has no rms_norm_eps."""
    ties_by_default: ClassVar[bool] = False
    """Whether the output layer is tied to the embedding where a config has no word on it."""
    rope_base: ClassVar[float | None] = 10_000.0
    """Rotary base where a config has none; None: a config must contain it."""
    rope_types: ClassVar[frozenset[str] | None] = None
    """Values of rope_type that transformers accepts for this family; None: all."""
    megatron_flags: ClassVar[frozenset[str] | None] = None
    """Megatron-LM arguments that are all set in a checkpoint of this family.

    None: no arguments mean this family, because they mean another one already.
    """
    megatron_may_set: ClassVar[frozenset[str]] = frozenset()
    """Further arguments that may be set in a checkpoint of this family."""
    gguf_architecture: ClassVar[str | None] = None
    """Architecture of llama.cpp that runs this family with two factor sets; None: none does."""

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return QKV_BIAS in self.weights

    @property
    def qk_norm(self) -> bool:
        """Whether each head's queries and keys are normalized."""
        return Q_NORM in self.weights

    def rules(self, *, tied: bool) -> tuple[WeightRule, ...]:
        """Returns the weight table; tied embeddings have no output layer of their own."""
        return tuple(
            rule for rule in self.weights if not (tied and rule.megatron == OUTPUT.megatron)
        )

    def read(self, config: Config, *, keep_windows: bool = True) -> dict[str, Any]:
        """Returns the fields of `ModelShape` for a config of this family.

        Raises InputError for settings that our model cannot do, and for damaged ones.
        `keep_windows=False` switches sliding windows off.
        """
        self.refuse_unsupported(config)
        layers = whole_number(config, "num_hidden_layers", MAX_LAYERS)
        heads = whole_number(config, "num_attention_heads")
        geometry = geometry_from_hf(self.with_rope_said(config))
        kv_heads = (
            heads
            if config.get("num_key_value_heads") is None
            else whole_number(config, "num_key_value_heads")
        )
        if heads % kv_heads:
            rule = f"a multiple of num_key_value_heads ({kv_heads})"
            raise InputError("config.num_attention_heads", heads, rule)
        return {
            "num_layers": layers,
            "hidden_size": whole_number(config, "hidden_size"),
            "ffn_hidden_size": whole_number(config, "intermediate_size"),
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": geometry.head_dim,
            "vocab_size": whole_number(config, "vocab_size"),
            "context_length": geometry.original_length,
            "rope_base": geometry.base,
            "norm_epsilon": small_number(config, "rms_norm_eps", self.norm_epsilon),
            "tie_embeddings": flag(config, "tie_word_embeddings", self.ties_by_default),
            "initializer_range": small_number(config, "initializer_range", 0.02),
            "architecture": self.model_type,
            "attention_windows": self.read_windows(config, layers) if keep_windows else (),
            "rope_free_layers": self.read_rope_free_layers(config, layers),
        }

    def write(self, shape: ModelShape) -> dict[str, Any]:
        """Returns the config of a model of this shape, without RoPE scaling.

        Raises InputError for windows that the family's config cannot express.
        """
        return {
            "architectures": [self.hf_class],
            "model_type": self.model_type,
            "num_hidden_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.ffn_hidden_size,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.context_length,
            "rms_norm_eps": shape.norm_epsilon,
            "tie_word_embeddings": shape.tie_embeddings,
            "initializer_range": shape.initializer_range,
            "use_cache": True,
            **{
                key: value
                for key, value in self.only.items()
                if value is not None and key not in self.unwritten
            },
            **self.write_attention(shape),
        }

    def read_windows(self, config: Config, layers: int) -> Windows:
        """Returns each layer's sliding window; by default the family has none."""
        return ()

    def read_rope_free_layers(self, config: Config, layers: int) -> tuple[int, ...]:
        """Returns the layers, counted from 0, that do not rotate; by default all rotate."""
        return ()

    def write_attention(self, shape: ModelShape) -> dict[str, Any]:
        """Returns the config keys for windows and for layers without RoPE.

        By default there are none, and a shape that has such layers is refused.
        """
        for name in ("attention_windows", "rope_free_layers"):
            if any(entry is not None for entry in getattr(shape, name)):
                raise InputError(name, short(getattr(shape, name)), f"no {self.model_type} has any")
        return {}

    def with_rope_said(self, config: Config) -> Config:
        """Returns the config with its rotary base, which transformers assumes where it is left out.

        `rope` reads configs of any family, and refuses one without a base.
        """
        places = (config, config.get("rope_parameters"), config.get("rope_scaling"))
        said = any(isinstance(p, Mapping) and p.get("rope_theta") is not None for p in places)
        if said or self.rope_base is None:
            return config
        return {**config, "rope_theta": self.rope_base}

    def serving_notes(self, config: Config) -> list[str]:
        """Returns what a person should know who serves an exported model with this config."""
        return []

    def refuse_unsupported(self, config: Config) -> None:
        """Raises InputError for settings that our model cannot do, and for missing ones."""
        for key, value in self.only.items():
            if config.get(key) not in (value, None):
                rule = f"only {value} is supported for {self.model_type}"
                raise InputError(f"config.{key}", config[key], rule)
        for key in self.must_say:
            if config.get(key) is None:
                raise InputError(f"config.{key}", None, f"a {self.model_type} config must say it")
        rope_type = _rope_type(config)
        if self.rope_types is not None and rope_type not in self.rope_types:
            rule = f"transformers' {self.model_type} knows {', '.join(sorted(self.rope_types))}"
            raise InputError("rope_type", rope_type, rule)


ARCHITECTURES: Registry[Architecture] = Registry("model_type")


def family_of(config: Config) -> Architecture:
    """Returns the family of a Hugging Face config; raises InputError for an unknown one.

    >>> family_of({"model_type": "mistral"}).hf_class
    'MistralForCausalLM'
    """
    return ARCHITECTURES[str(config.get("model_type"))]


def with_rope_said(config: Config) -> Config:
    """Returns a config with what transformers would assume of RoPE, so that `rope` can read it."""
    return family_of(config).with_rope_said(config)


def family_of_megatron_flags(flags: Collection[str]) -> Architecture | None:
    """Returns the family of a checkpoint with these Megatron-LM arguments set.

    None: no family has these together. Megatron-LM can combine any.
    """
    for family in ARCHITECTURES.values():
        needed = family.megatron_flags
        if needed is not None and needed <= set(flags) <= needed | family.megatron_may_set:
            return family
    return None


def megatron_flags() -> list[str]:
    """Returns the Megatron-LM arguments that tell families apart, in alphabetical order."""
    return sorted(
        frozenset[str]().union(
            *(family.megatron_flags or () for family in ARCHITECTURES.values()),
            *(family.megatron_may_set for family in ARCHITECTURES.values()),
        )
    )


def _rope_type(config: Config) -> str:
    said = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(said, Mapping):
        return "default"
    return str(said.get("rope_type") or said.get("type") or "default")
