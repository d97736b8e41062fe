"""Which Hugging Face weights make which Megatron weight, as a table that serves both directions.

A kind says how: the tensor functions are pure, and "whole" means as one process without tensor parallelism holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from megatron_longrope.model import ModelShape

Kind = Literal["plain", "row", "qkv", "gate_up", "embedding"]
"""plain: the same on every rank. row: cut along its inputs. qkv: per K/V group [q…q, k, v], cut by group.
gate_up: [gate; up], cut in each half. embedding: rows padded to the Megatron vocabulary, cut by row."""


@dataclass(frozen=True)
class WeightRule:
    """One Megatron weight, the HF weights it is made of and their sizes; `{layer}` stands for the layer's number."""

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    sizes: tuple[tuple[str, ...], ...]
    stored_as: str | None = None
    """Its name in checkpoints, where megatron-core keeps to Transformer Engine's names whatever the layers are."""

    @property
    def is_per_layer(self) -> bool:
        return "{layer}" in self.megatron

    @property
    def stored(self) -> str:
        """The name in a checkpoint that keeps every layer under its own."""
        return self.stored_as or self.megatron

    @property
    def stacked(self) -> str:
        """The name of all layers' weights together, as megatron-core's checkpoints keep them by default."""
        return self.stored.replace(".{layer}", "")

    def at(self, layer: int) -> WeightRule:
        """Returns the rule of one layer."""
        return replace(
            self,
            megatron=self.megatron.format(layer=layer),
            hf=tuple(name.format(layer=layer) for name in self.hf),
            stored_as=self.stored.format(layer=layer),
        )

    def hf_sizes(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Returns the sizes of each HF weight of this rule."""
        dims = {
            "hidden": shape.hidden_size,
            "ffn": shape.ffn_hidden_size,
            "query": shape.num_heads * shape.head_dim,
            "key": shape.num_kv_heads * shape.head_dim,
            "vocab": shape.vocab_size,
        }
        return {name: tuple(dims[d] for d in sizes) for name, sizes in zip(self.hf, self.sizes, strict=True)}


_M, _H = "decoder.layers.{layer}.", "model.layers.{layer}."
_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT = "output_layer.weight"
LLAMA = (
    WeightRule("embedding.word_embeddings.weight", (_EMBEDDING,), "embedding", (("vocab", "hidden"),)),
    WeightRule(
        f"{_M}input_layernorm.weight",
        (f"{_H}input_layernorm.weight",),
        "plain",
        (("hidden",),),
        stored_as=f"{_M}self_attention.linear_qkv.layer_norm_weight",
    ),
    WeightRule(
        f"{_M}self_attention.linear_qkv.weight",
        tuple(f"{_H}self_attn.{part}_proj.weight" for part in "qkv"),
        "qkv",
        (("query", "hidden"), ("key", "hidden"), ("key", "hidden")),
    ),
    WeightRule(
        f"{_M}self_attention.linear_proj.weight", (f"{_H}self_attn.o_proj.weight",), "row", (("hidden", "query"),)
    ),
    WeightRule(
        f"{_M}pre_mlp_layernorm.weight",
        (f"{_H}post_attention_layernorm.weight",),
        "plain",
        (("hidden",),),
        stored_as=f"{_M}mlp.linear_fc1.layer_norm_weight",
    ),
    WeightRule(
        f"{_M}mlp.linear_fc1.weight",
        (f"{_H}mlp.gate_proj.weight", f"{_H}mlp.up_proj.weight"),
        "gate_up",
        (("ffn", "hidden"), ("ffn", "hidden")),
    ),
    WeightRule(f"{_M}mlp.linear_fc2.weight", (f"{_H}mlp.down_proj.weight",), "row", (("hidden", "ffn"),)),
    WeightRule("decoder.final_layernorm.weight", ("model.norm.weight",), "plain", (("hidden",),)),
    WeightRule(_OUTPUT, ("lm_head.weight",), "embedding", (("vocab", "hidden"),)),
)
DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)
"""HF tensors some folders hold that are computed from the config: left out, and said so."""


def rules_for(shape: ModelShape) -> tuple[WeightRule, ...]:
    """Returns the rules of the weights that exist once: tied embeddings have no output layer of their own."""
    return tuple(rule for rule in LLAMA if not (shape.tie_embeddings and rule.megatron == _OUTPUT))


def bound_rules(shape: ModelShape) -> Iterator[tuple[WeightRule, int | None, WeightRule]]:
    """Yields (rule, layer, rule of that layer) for every weight, in the order of the model."""
    rules = rules_for(shape)
    first = next(i for i, rule in enumerate(rules) if rule.is_per_layer)
    last = max(i for i, rule in enumerate(rules) if rule.is_per_layer)
    yield from ((rule, None, rule) for rule in rules[:first])
    for layer in range(shape.num_layers):
        yield from ((rule, layer, rule.at(layer)) for rule in rules[first : last + 1])
    yield from ((rule, None, rule) for rule in rules[last + 1 :])


def hf_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Returns name and sizes of every HF weight a model of this shape has."""
    return {name: sizes for _, _, rule in bound_rules(shape) for name, sizes in rule.hf_sizes(shape).items()}


def rule_of(parameter: str, shape: ModelShape, first_layer: int) -> WeightRule:
    """Returns the rule of a pipeline stage's parameter, whose layers count from `first_layer`.

    The parameter may have its name in either specification of layers, megatron-core's own or Transformer Engine's. The
    last stage of a tied model keeps its own copy of the embedding under the output layer's name.
    """
    if parameter == _OUTPUT and shape.tie_embeddings:
        return WeightRule(_OUTPUT, (_EMBEDDING,), "embedding", (("vocab", "hidden"),))
    parts = parameter.split(".")
    if parts[:2] != ["decoder", "layers"]:
        return next(rule for rule in LLAMA if rule.megatron == parameter)
    generic = ".".join([*parts[:2], "{layer}", *parts[3:]])
    return next(rule for rule in LLAMA if generic in (rule.megatron, rule.stored)).at(first_layer + int(parts[2]))


def to_megatron(rule: WeightRule, tensors: Sequence[Tensor], shape: ModelShape) -> Tensor:
    """Returns the whole Megatron weight of the rule's HF weights."""
    return _KINDS[rule.kind].merge(tensors, shape)


def to_hf(rule: WeightRule, tensor: Tensor, shape: ModelShape) -> dict[str, Tensor]:
    """Returns the HF weights by name, each contiguous: the inverse of `to_megatron`, bit for bit."""
    parts = _KINDS[rule.kind].split(tensor, shape)
    return {name: part.contiguous() for name, part in zip(rule.hf, parts, strict=True)}


def tensor_parallel_share(rule: WeightRule, tensor: Tensor, rank: int, size: int) -> Tensor:
    """Returns what tensor-parallel rank `rank` of `size` holds of a whole Megatron weight."""
    return _KINDS[rule.kind].share(tensor, rank, size)


@dataclass(frozen=True)
class _KindFunctions:
    merge: Callable[[Sequence[Tensor], ModelShape], Tensor]
    split: Callable[[Tensor, ModelShape], Sequence[Tensor]]
    share: Callable[[Tensor, int, int], Tensor]


def _merge_qkv(tensors: Sequence[Tensor], shape: ModelShape) -> Tensor:
    groups = shape.num_kv_heads
    per_group = [tensor.reshape(groups, -1, *tensor.shape[1:]) for tensor in tensors]
    return torch.cat(per_group, dim=1).flatten(0, 1)


def _split_qkv(tensor: Tensor, shape: ModelShape) -> Sequence[Tensor]:
    groups, head = shape.num_kv_heads, shape.head_dim
    per_group = tensor.reshape(groups, -1, *tensor.shape[1:])
    parts = per_group.split([shape.num_heads // groups * head, head, head], dim=1)
    return [part.flatten(0, 1) for part in parts]


def _pad_rows(tensors: Sequence[Tensor], shape: ModelShape) -> Tensor:
    (tensor,) = tensors
    padding = tensor.new_zeros(shape.padded_vocab_size - shape.vocab_size, *tensor.shape[1:])
    return torch.cat([tensor, padding])


def _share_halves(tensor: Tensor, rank: int, size: int) -> Tensor:
    return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])


def _share_rows(tensor: Tensor, rank: int, size: int) -> Tensor:
    return tensor.chunk(size)[rank]


_KINDS: Mapping[Kind, _KindFunctions] = {
    "plain": _KindFunctions(lambda t, _: t[0], lambda t, _: [t], lambda t, rank, size: t),
    "row": _KindFunctions(lambda t, _: t[0], lambda t, _: [t], lambda t, rank, size: t.chunk(size, dim=1)[rank]),
    "qkv": _KindFunctions(_merge_qkv, _split_qkv, _share_rows),
    "gate_up": _KindFunctions(lambda t, _: torch.cat(list(t)), lambda t, _: t.chunk(2), _share_halves),
    "embedding": _KindFunctions(_pad_rows, lambda t, shape: [t[: shape.vocab_size]], _share_rows),
}
