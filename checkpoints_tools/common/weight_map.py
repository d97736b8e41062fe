"""Which Hugging Face weights make which Megatron weight: one table per architecture that serves
both directions.

Whatever the kind, a whole Megatron weight ("whole": as one process without tensor parallelism holds
it) is made of runs of rows of HF weights, so the kinds differ in nothing but a list of runs. Read
one way it imports, read the other way it exports, and either way a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures.families import ARCHITECTURES, ArchitectureName

Kind = Literal["plain", "row", "qkv", "fused_qkv", "gate_up", "fused_gate_up", "embedding"]
"""plain: the same on every rank. row: cut along its inputs. qkv: per K/V group [q…q, k, v], cut by
group (fused: HF has [Q; K; V] in one weight). gate_up: [gate; up], cut in each half (fused: so in
HF too). embedding: rows padded to the Megatron vocabulary, cut by row."""


class RowRun(NamedTuple):
    """`rows` rows from row `start` of the rule's HF weight number `source`; None: rows of zeros."""

    source: int | None
    start: int
    rows: int


@dataclass(frozen=True)
class WeightRule:
    """One Megatron weight, the HF weights it is made of and their sizes; `{layer}` stands for the
    layer's number."""

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    sizes: tuple[tuple[str, ...], ...]
    stored_as: str | None = None
    """Its name with Transformer Engine's layers, and in checkpoints whatever the layers are."""

    @property
    def is_per_layer(self) -> bool:
        return "{layer}" in self.megatron

    @property
    def stored(self) -> str:
        """The name in a checkpoint that keeps every layer under its own."""
        return self.stored_as or self.megatron

    @property
    def stacked(self) -> str:
        """The name of all layers' weights together, as megatron-core's checkpoints keep them by
        default."""
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
        query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        dims = {
            "hidden": shape.hidden_size,
            "ffn": shape.ffn_hidden_size,
            "gate+up": 2 * shape.ffn_hidden_size,
            "head": shape.head_dim,
            "query": query,
            "key": key,
            "q+k+v": query + 2 * key,
            "vocab": shape.vocab_size,
        }
        return {
            name: tuple(dims[d] for d in sizes)
            for name, sizes in zip(self.hf, self.sizes, strict=True)
        }

    def row_runs(self, shape: ModelShape) -> list[RowRun]:
        """Returns what the whole Megatron weight's rows are, from its first to its last."""
        query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        if self.kind == "qkv":
            return _grouped(shape, (0, 1, 2), (0, 0, 0))
        if self.kind == "fused_qkv":
            return _grouped(shape, (0, 0, 0), (0, query, query + key))
        runs = [
            RowRun(source, 0, sizes[0])
            for source, sizes in enumerate(self.hf_sizes(shape).values())
        ]
        if self.kind == "embedding" and shape.padded_vocab_size > shape.vocab_size:
            runs.append(RowRun(None, 0, shape.padded_vocab_size - shape.vocab_size))
        return runs

    def sizes_in_megatron(self, shape: ModelShape) -> tuple[int, ...]:
        """Returns the sizes of the whole Megatron weight."""
        columns = next(iter(self.hf_sizes(shape).values()))[1:]
        return (sum(run.rows for run in self.row_runs(shape)), *columns)


def _grouped(shape: ModelShape, sources: Sequence[int], starts: Sequence[int]) -> list[RowRun]:
    """Per K/V group: its query heads, its key head, its value head."""
    heads = (shape.num_heads // shape.num_kv_heads * shape.head_dim, shape.head_dim, shape.head_dim)
    return [
        RowRun(source, start + group * rows, rows)
        for group in range(shape.num_kv_heads)
        for source, start, rows in zip(sources, starts, heads, strict=True)
    ]


_M, _H = "decoder.layers.{layer}.", "model.layers.{layer}."
_MA, _HA = f"{_M}self_attention.", f"{_H}self_attn."
_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT = "output_layer.weight"
_SEPARATE_ROWS = ("query", "key", "key")


def _plain(megatron: str, hf: str, size: str, stored_as: str | None = None) -> WeightRule:
    return WeightRule(megatron, (hf,), "plain", ((size,),), stored_as)


_IN_NORM = _plain(
    f"{_M}input_layernorm.weight",
    f"{_H}input_layernorm.weight",
    "hidden",
    stored_as=f"{_MA}linear_qkv.layer_norm_weight",
)
_QKV = WeightRule(
    f"{_MA}linear_qkv.weight",
    tuple(f"{_HA}{part}_proj.weight" for part in "qkv"),
    "qkv",
    tuple((rows, "hidden") for rows in _SEPARATE_ROWS),
)
_QKV_BIAS = WeightRule(
    f"{_MA}linear_qkv.bias",
    tuple(f"{_HA}{part}_proj.bias" for part in "qkv"),
    "qkv",
    tuple((rows,) for rows in _SEPARATE_ROWS),
)
_FUSED_QKV = WeightRule(
    f"{_MA}linear_qkv.weight", (f"{_HA}qkv_proj.weight",), "fused_qkv", (("q+k+v", "hidden"),)
)
_Q_NORM = _plain(f"{_MA}q_layernorm.weight", f"{_HA}q_norm.weight", "head")
_K_NORM = _plain(f"{_MA}k_layernorm.weight", f"{_HA}k_norm.weight", "head")
_PROJ = WeightRule(
    f"{_MA}linear_proj.weight", (f"{_HA}o_proj.weight",), "row", (("hidden", "query"),)
)
_MLP_NORM = _plain(
    f"{_M}pre_mlp_layernorm.weight",
    f"{_H}post_attention_layernorm.weight",
    "hidden",
    stored_as=f"{_M}mlp.linear_fc1.layer_norm_weight",
)
_FC1 = WeightRule(
    f"{_M}mlp.linear_fc1.weight",
    (f"{_H}mlp.gate_proj.weight", f"{_H}mlp.up_proj.weight"),
    "gate_up",
    (("ffn", "hidden"), ("ffn", "hidden")),
)
_FUSED_FC1 = WeightRule(
    f"{_M}mlp.linear_fc1.weight",
    (f"{_H}mlp.gate_up_proj.weight",),
    "fused_gate_up",
    (("gate+up", "hidden"),),
)
_FC2 = WeightRule(
    f"{_M}mlp.linear_fc2.weight", (f"{_H}mlp.down_proj.weight",), "row", (("hidden", "ffn"),)
)
_FIRST = WeightRule(
    "embedding.word_embeddings.weight", (_EMBEDDING,), "embedding", (("vocab", "hidden"),)
)
_LAST = (
    _plain("decoder.final_layernorm.weight", "model.norm.weight", "hidden"),
    WeightRule(_OUTPUT, ("lm_head.weight",), "embedding", (("vocab", "hidden"),)),
)
_LLAMA = (_FIRST, _IN_NORM, _QKV, _PROJ, _MLP_NORM, _FC1, _FC2, *_LAST)
TABLES: Mapping[ArchitectureName, tuple[WeightRule, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "smollm3": _LLAMA,
    "qwen2": (_FIRST, _IN_NORM, _QKV, _QKV_BIAS, _PROJ, _MLP_NORM, _FC1, _FC2, *_LAST),
    "qwen3": (_FIRST, _IN_NORM, _QKV, _Q_NORM, _K_NORM, _PROJ, _MLP_NORM, _FC1, _FC2, *_LAST),
    "phi3": (_FIRST, _IN_NORM, _FUSED_QKV, _PROJ, _MLP_NORM, _FUSED_FC1, _FC2, *_LAST),
}
assert TABLES.keys() == ARCHITECTURES.keys()
DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)
"""HF tensors some folders hold that are computed from the config: left out, and said so."""


def rules_for(shape: ModelShape) -> tuple[WeightRule, ...]:
    """Returns the rules of the weights that exist once: tied embeddings have no output layer of
    their own."""
    return tuple(
        rule
        for rule in TABLES[shape.architecture]
        if not (shape.tie_embeddings and rule.megatron == _OUTPUT)
    )


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
    return {
        name: sizes
        for _, _, rule in bound_rules(shape)
        for name, sizes in rule.hf_sizes(shape).items()
    }


def rule_of(parameter: str, shape: ModelShape) -> WeightRule:
    """Returns the rule of a parameter by its name in the whole model
    (`LongRopeModel.named_parameters`).

    It may have its name in either specification of layers, megatron-core's own or Transformer
    Engine's. The last stage of a tied model keeps its own copy of the embedding under the output
    layer's name.
    """
    if parameter == _OUTPUT and shape.tie_embeddings:
        return WeightRule(_OUTPUT, (_EMBEDDING,), "embedding", (("vocab", "hidden"),))
    parts = parameter.split(".")
    in_layer = parts[:2] == ["decoder", "layers"]
    generic = ".".join([*parts[:2], "{layer}", *parts[3:]]) if in_layer else parameter
    rule = next(
        rule for rule in TABLES[shape.architecture] if generic in (rule.megatron, rule.stored)
    )
    return rule.at(int(parts[2])) if in_layer else rule


def to_megatron(rule: WeightRule, tensors: Sequence[Tensor], shape: ModelShape) -> Tensor:
    """Returns the whole Megatron weight of the rule's HF weights."""
    parts = []
    for source, start, rows in rule.row_runs(shape):
        columns = tensors[0].shape[1:]
        parts.append(
            tensors[0].new_zeros(rows, *columns)
            if source is None
            else tensors[source][start : start + rows]
        )
    return torch.cat(parts)


def to_hf(rule: WeightRule, tensor: Tensor, shape: ModelShape) -> dict[str, Tensor]:
    """Returns the HF weights by name, each contiguous: the inverse of `to_megatron`, bit for
    bit."""
    parts = [tensor.new_empty(sizes) for sizes in rule.hf_sizes(shape).values()]
    first = 0
    for source, start, rows in rule.row_runs(shape):
        if source is not None:
            parts[source][start : start + rows] = tensor[first : first + rows]
        first += rows
    return dict(zip(rule.hf, parts, strict=True))


def tensor_parallel_share(rule: WeightRule, tensor: Tensor, rank: int, size: int) -> Tensor:
    """Returns what tensor-parallel rank `rank` of `size` holds of a whole Megatron weight."""
    if rule.kind == "plain":
        return tensor
    if rule.kind == "row":
        return tensor.chunk(size, dim=1)[rank]
    if rule.kind in ("gate_up", "fused_gate_up"):
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    return tensor.chunk(size)[rank]
