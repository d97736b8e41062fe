"""Weight tables: which Hugging Face weights make which Megatron weight, and how.

A whole Megatron weight is what one process holds without tensor parallelism. Whatever its kind, it
is a sequence of runs of rows from Hugging Face weights, so kinds differ only in the list of runs.
Read one way, the list imports weights; read the other way, it exports them; a few rows at a time
both ways.

A family lists its rules in the order of the model: the embedding, the layers' weights, then what
comes after the layers. The rules that families share stand at the end of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # a shape names its family, and a family holds its weight table
    from megatron_longrope.model.shape import ModelShape

Kind = Literal["plain", "row", "qkv", "fused_qkv", "gate_up", "fused_gate_up", "embedding"]
"""How a weight is put together, and how tensor parallelism cuts it.

- plain: the same on every rank.
- row: cut along its inputs.
- qkv: for each K/V head the heads of its queries, then key, then value: [q…q, k, v]; cut between
  these groups. fused_qkv: the same, from one Hugging Face weight [Q; K; V].
- gate_up: [gate; up], each half cut by itself. fused_gate_up: the same, from one such weight.
- embedding: rows padded to the padded vocabulary, cut by row.
"""


class RowRun(NamedTuple):
    """Some consecutive rows of one of a rule's Hugging Face weights."""

    source: int | None
    """Number of the weight among the rule's; None: rows of zeros."""
    start: int
    """Number of the first row."""
    rows: int
    """Number of rows."""


@dataclass(frozen=True)
class WeightRule:
    """One Megatron weight, and the Hugging Face weights it is made of.

    `{layer}` in a name stands for the number of the layer.
    """

    megatron: str
    """Name of the Megatron weight in a model with megatron-core's local layers."""
    hf: tuple[str, ...]
    """Names of the Hugging Face weights."""
    kind: Kind
    sizes: tuple[tuple[str, ...], ...]
    """Sizes of the Hugging Face weights in words that `hf_sizes` turns into numbers."""
    stored_as: str | None = None
    """Name in checkpoints, and in a model of Transformer Engine's layers; None: the same.

    Transformer Engine fuses a norm into the projection after it, so the weight has another name.
    """

    @property
    def is_per_layer(self) -> bool:
        """Whether every layer has this weight."""
        return "{layer}" in self.megatron

    @property
    def stored(self) -> str:
        """Name in a checkpoint in which each layer's weight is a tensor of its own."""
        return self.stored_as or self.megatron

    @property
    def stacked(self) -> str:
        """Name in a checkpoint that stacks all layers in one tensor, megatron-core's default."""
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
        """Returns the sizes of each Hugging Face weight of this rule, by name."""
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
        """Returns the runs of rows that make the whole Megatron weight, in its order."""
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
    """Returns the runs [q…q, k, v] of each K/V group.

    `sources` and `starts` say where queries, keys and values begin in the Hugging Face weights.
    """
    heads = (shape.num_heads // shape.num_kv_heads * shape.head_dim, shape.head_dim, shape.head_dim)
    return [
        RowRun(source, start + group * rows, rows)
        for group in range(shape.num_kv_heads)
        for source, start, rows in zip(sources, starts, heads, strict=True)
    ]


_M, _H = "decoder.layers.{layer}.", "model.layers.{layer}."
_MA, _HA = f"{_M}self_attention.", f"{_H}self_attn."
_SEPARATE_ROWS = ("query", "key", "key")


def plain(megatron: str, hf: str, size: str, stored_as: str | None = None) -> WeightRule:
    """Returns the rule of a vector that every rank holds whole."""
    return WeightRule(megatron, (hf,), "plain", ((size,),), stored_as)


EMBEDDING = WeightRule(
    megatron="embedding.word_embeddings.weight",
    hf=("model.embed_tokens.weight",),
    kind="embedding",
    sizes=(("vocab", "hidden"),),
)
IN_NORM = plain(
    f"{_M}input_layernorm.weight",
    f"{_H}input_layernorm.weight",
    "hidden",
    stored_as=f"{_MA}linear_qkv.layer_norm_weight",
)
QKV = WeightRule(
    megatron=f"{_MA}linear_qkv.weight",
    hf=tuple(f"{_HA}{part}_proj.weight" for part in "qkv"),
    kind="qkv",
    sizes=tuple((rows, "hidden") for rows in _SEPARATE_ROWS),
)
QKV_BIAS = WeightRule(
    megatron=f"{_MA}linear_qkv.bias",
    hf=tuple(f"{_HA}{part}_proj.bias" for part in "qkv"),
    kind="qkv",
    sizes=tuple((rows,) for rows in _SEPARATE_ROWS),
)
FUSED_QKV = WeightRule(
    megatron=f"{_MA}linear_qkv.weight",
    hf=(f"{_HA}qkv_proj.weight",),
    kind="fused_qkv",
    sizes=(("q+k+v", "hidden"),),
)
Q_NORM = plain(f"{_MA}q_layernorm.weight", f"{_HA}q_norm.weight", "head")
K_NORM = plain(f"{_MA}k_layernorm.weight", f"{_HA}k_norm.weight", "head")
PROJ = WeightRule(
    megatron=f"{_MA}linear_proj.weight",
    hf=(f"{_HA}o_proj.weight",),
    kind="row",
    sizes=(("hidden", "query"),),
)
MLP_NORM = plain(
    f"{_M}pre_mlp_layernorm.weight",
    f"{_H}post_attention_layernorm.weight",
    "hidden",
    stored_as=f"{_M}mlp.linear_fc1.layer_norm_weight",
)
FC1 = WeightRule(
    megatron=f"{_M}mlp.linear_fc1.weight",
    hf=(f"{_H}mlp.gate_proj.weight", f"{_H}mlp.up_proj.weight"),
    kind="gate_up",
    sizes=(("ffn", "hidden"), ("ffn", "hidden")),
)
FUSED_FC1 = WeightRule(
    megatron=f"{_M}mlp.linear_fc1.weight",
    hf=(f"{_H}mlp.gate_up_proj.weight",),
    kind="fused_gate_up",
    sizes=(("gate+up", "hidden"),),
)
FC2 = WeightRule(
    megatron=f"{_M}mlp.linear_fc2.weight",
    hf=(f"{_H}mlp.down_proj.weight",),
    kind="row",
    sizes=(("hidden", "ffn"),),
)
FINAL_NORM = plain("decoder.final_layernorm.weight", "model.norm.weight", "hidden")
OUTPUT = WeightRule(
    megatron="output_layer.weight",
    hf=("lm_head.weight",),
    kind="embedding",
    sizes=(("vocab", "hidden"),),
)
