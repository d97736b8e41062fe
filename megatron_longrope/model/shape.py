"""The sizes and options of a model, read from a Hugging Face config without dropping any."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from megatron_longrope.config import Length, StrictConfig
from megatron_longrope.model.architectures import ARCHITECTURES, Architecture, family_of
from megatron_longrope.model.flops import PassFlops

VOCABULARY_MULTIPLE = 128
"""Embedding rows are padded to this under every layout, so that any layout loads any checkpoint."""


def _known_family(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ValueError(f"one of {', '.join(ARCHITECTURES)}")
    return name


ArchitectureName = Annotated[str, AfterValidator(_known_family)]


class ModelShape(StrictConfig):
    """The sizes and options of a model; RoPE scaling is not among them but a factor set.

    >>> model.shape.window(0) is None, model.shape.padded_vocab_size % VOCABULARY_MULTIPLE
    (True, 0)
    """

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
    """Tokens the attention of each layer reaches back, the query included; None: all.

    Empty: all, in every layer.
    """
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
    def family(self) -> Architecture:
        """The model family: what its models have in common."""
        return ARCHITECTURES[self.architecture]

    def window(self, layer: int) -> int | None:
        """Returns how many tokens the attention of `layer` (from 0) reaches back; None: all."""
        return self.attention_windows[layer] if self.attention_windows else None

    @property
    def padded_vocab_size(self) -> int:
        """Number of embedding rows with padding, which no loss counts and export cuts off."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def num_parameters(self) -> int:
        """Number of weights as Hugging Face counts them: tied embeddings once, no padding."""
        return sum(
            (self.num_layers if rule.is_per_layer else 1) * math.prod(sizes)
            for rule in self.family.rules(tied=self.tie_embeddings)
            for sizes in rule.hf_sizes(self).values()
        )

    def forward_flops(self, length: int) -> float:
        """Returns the floating-point operations of a forward pass over `length` tokens."""
        return PassFlops(self, length).forward

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, keep_windows: bool = True) -> Self:
        """Returns the shape that a Hugging Face `config.json` describes.

        Raises InputError for a family or an option that is not supported. `keep_windows=False`
        switches sliding windows off: every layer attends to everything before it.
        """
        return cls(**family_of(config).read(config, keep_windows=keep_windows))

    def to_hf(self) -> dict[str, Any]:
        """Returns the config keys of this shape for its family in transformers, without RoPE.

        Raises InputError for windows that the family's config cannot express.
        """
        return self.family.write(self)
