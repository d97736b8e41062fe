"""Maps weights between Hugging Face and Megatron, both ways, by the rules of the model's family.

A rule says which Hugging Face weights make up one Megatron weight, and in which order of rows: q, k
and v become one `linear_qkv` whose rows are grouped by key head, gate and up become one
`linear_fc1`. The rules stand in megatron_longrope/model/architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures.weights import EMBEDDING, OUTPUT, WeightRule

DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Endings of tensors that old HF folders hold though the config gives them; they are left out."""


def bound_rules(shape: ModelShape) -> Iterator[tuple[WeightRule, int | None, WeightRule]]:
    """Yields (rule, layer, rule with that layer's names) for every weight, in the model's order.

    The layer is None for weights outside the layers, such as the embedding.
    """
    rules = shape.family.rules(tied=shape.tie_embeddings)
    first = next(i for i, rule in enumerate(rules) if rule.is_per_layer)
    last = max(i for i, rule in enumerate(rules) if rule.is_per_layer)
    yield from ((rule, None, rule) for rule in rules[:first])
    for layer in range(shape.num_layers):
        yield from ((rule, layer, rule.at(layer)) for rule in rules[first : last + 1])
    yield from ((rule, None, rule) for rule in rules[last + 1 :])


def hf_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Returns the sizes of every Hugging Face weight of a model of this shape, by name."""
    return {
        name: sizes
        for _, _, rule in bound_rules(shape)
        for name, sizes in rule.hf_sizes(shape).items()
    }


def rule_of(parameter: str, shape: ModelShape) -> WeightRule:
    """Returns the rule of a parameter, by its name in `LongRopeModel.named_parameters`.

    The name may be that of megatron-core's own layers or of Transformer Engine's, which fuse norms
    into the following linear layers. The last pipeline stage of a tied model has a copy of the
    embedding under the output layer's name, and gets the embedding's rule under that name.
    """
    if parameter == OUTPUT.megatron and shape.tie_embeddings:
        return replace(EMBEDDING, megatron=OUTPUT.megatron)
    parts = parameter.split(".")
    in_layer = parts[:2] == ["decoder", "layers"]
    generic = ".".join([*parts[:2], "{layer}", *parts[3:]]) if in_layer else parameter
    rule = next(rule for rule in shape.family.weights if generic in (rule.megatron, rule.stored))
    return rule.at(int(parts[2])) if in_layer else rule


def to_megatron(rule: WeightRule, tensors: Sequence[Tensor], shape: ModelShape) -> Tensor:
    """Returns the whole Megatron weight made of the rule's Hugging Face weights.

    `tensors` are in the order of `rule.hf`. Rows without a source pad the vocabulary with zeros.
    """
    parts = []
    for source, start, rows in rule.row_runs(shape):
        if source is None:
            parts.append(tensors[0].new_zeros(rows, *tensors[0].shape[1:]))
        else:
            parts.append(tensors[source][start : start + rows])
    return torch.cat(parts)


def to_hf(rule: WeightRule, tensor: Tensor, shape: ModelShape) -> dict[str, Tensor]:
    """Returns the HF weights by name, each contiguous; undoes `to_megatron` bit for bit."""
    parts = [tensor.new_empty(sizes) for sizes in rule.hf_sizes(shape).values()]
    first = 0
    for source, start, rows in rule.row_runs(shape):
        if source is not None:
            parts[source][start : start + rows] = tensor[first : first + rows]
        first += rows
    return dict(zip(rule.hf, parts, strict=True))


def tensor_parallel_share(rule: WeightRule, tensor: Tensor, rank: int, size: int) -> Tensor:
    """Returns the part of a whole Megatron weight that tensor-parallel rank `rank` of `size` holds.

    Column-parallel layers cut the rows of their weight (the outputs), row-parallel layers its
    columns (the inputs).
    """
    if rule.kind == "plain":
        return tensor
    if rule.kind == "row":
        return tensor.chunk(size, dim=1)[rank]
    if rule.kind in ("gate_up", "fused_gate_up"):
        # [gate; up] stacked: a rank needs matching rows of both halves to compute silu(gate) · up
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    return tensor.chunk(size)[rank]
