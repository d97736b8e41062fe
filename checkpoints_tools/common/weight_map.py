"""Weights between Hugging Face and Megatron by the table of their family, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures.weights import EMBEDDING, OUTPUT, WeightRule

DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)
"""HF tensors some folders hold that are computed from the config: left out, and said so."""


def bound_rules(shape: ModelShape) -> Iterator[tuple[WeightRule, int | None, WeightRule]]:
    """Yields (rule, layer, rule of that layer) for every weight, in the order of the model."""
    rules = shape.family.rules(tied=shape.tie_embeddings)
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
    if parameter == OUTPUT.megatron and shape.tie_embeddings:
        return replace(EMBEDDING, megatron=OUTPUT.megatron)
    parts = parameter.split(".")
    in_layer = parts[:2] == ["decoder", "layers"]
    generic = ".".join([*parts[:2], "{layer}", *parts[3:]]) if in_layer else parameter
    rule = next(rule for rule in shape.family.weights if generic in (rule.megatron, rule.stored))
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
    """Returns the HF weights by name, each contiguous: `to_megatron` undone bit for bit."""
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
