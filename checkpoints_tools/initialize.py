"""A fresh model as a Hugging Face folder: plain Gaussian weights, or weights that can look things
up from the start.

Small models spend most of a short training on discovering the induction circuit (Olsson et al.
2022, arXiv 2209.11895): a head that carries each token's predecessor along, and a later head that
finds where the current token was a predecessor and copies what followed. `retrieval` writes that
circuit into the first two layers and leaves everything, the circuit included, to training. In the
spirit of mimetic initialization (Trockman & Kolter 2023, arXiv 2305.09828).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from checkpoints_tools.common.weight_map import hf_sizes
from checkpoints_tools.hf.writing import write_hf_folder
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.rope import (
    FactorSet,
    NoScaling,
    RopeGeometry,
    hf_rope_config,
    inverse_frequencies,
)

Scheme = Literal["normal", "retrieval"]

_CONSTANT = 0.5
"""Share of each embedding's norm that all tokens have in common: what a head without biases can
rely on."""
_PREVIOUS_PEAK = 12.0
"""Attention logit by which the previous token stands out in layer 0."""
_MATCH = 3.0
"""Strength of the match between a token and another's predecessor in layer 1."""
_COPY = 0.3
"""How strongly the matched token's successor is written towards the output."""
_FAST, _SLOW = 0.35, 1.2
"""Radians: pairs that turn more than _FAST per token tell positions apart, those that turn less
than _SLOW over the whole window leave content comparable at any distance inside it."""


def initialize_model(
    shape: ModelShape, scheme: Scheme, seed: int, folder: Path, tokenizer_folder: Path | None = None
) -> None:
    """Writes a fresh model of `shape` as float32 safetensors with config and tokenizer files.

    Raises InputError where `retrieval` does not fit the shape.
    """
    weights = initial_weights(shape, scheme, seed)
    geometry = RopeGeometry(
        base=shape.rope_base, head_dim=shape.head_dim, original_length=shape.context_length
    )
    rope = hf_rope_config(FactorSet.single(NoScaling().factors(geometry)))
    config = shape.to_hf() | rope | {"torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 0}
    write_hf_folder(folder, config, iter(weights.items()), carried_from=tokenizer_folder)


def initial_weights(shape: ModelShape, scheme: Scheme, seed: int) -> dict[str, Tensor]:
    """Returns every tensor under its Hugging Face name, float32; the same seed gives the same
    bits."""
    generator = torch.Generator().manual_seed(seed)
    deep = shape.initializer_range / math.sqrt(2 * shape.num_layers)
    weights = {}
    for name, size in hf_sizes(shape).items():
        std = (
            deep
            if name.endswith(("o_proj.weight", "down_proj.weight"))
            else shape.initializer_range
        )
        norm = len(size) == 1
        weights[name] = torch.ones(size) if norm else torch.randn(size, generator=generator) * std
    if scheme == "retrieval":
        _write_circuit(weights, shape, generator)
    return weights


def _write_circuit(
    weights: dict[str, Tensor], shape: ModelShape, generator: torch.Generator
) -> None:
    """Previous-token heads in the first group of layer 0, induction heads in the first group of
    layer 1."""
    if shape.num_layers < 2 or shape.tie_embeddings or shape.hidden_size < 2 * shape.head_dim:
        raise InputError(
            "initialize.scheme",
            "retrieval",
            "needs two layers, untied embeddings and hidden_size of at least 2·head_dim",
        )
    hidden, group = shape.hidden_size, shape.num_heads // shape.num_kv_heads
    common = _orthonormal(hidden, 1, generator)[:, 0]
    tokens = torch.randn(shape.vocab_size, hidden, generator=generator) * math.sqrt(
        (1 - _CONSTANT**2) / hidden
    )
    tokens -= torch.outer(tokens @ common, common)
    turn = _orthonormal(hidden, hidden, generator)
    weights["model.embed_tokens.weight"] = tokens + _CONSTANT * common
    # the output reads a rotated copy of the embeddings, or the residual stream would predict each
    # token itself
    weights["lm_head.weight"] = tokens @ turn.T
    code = _without(common, _orthonormal(hidden, shape.head_dim, generator)).T
    carried = _without(common, _orthonormal(hidden, shape.head_dim, generator))
    _previous_token(weights, shape, common, code, carried, group, generator)
    _induction(weights, shape, common, code, carried, turn, group, generator)


def _previous_token(
    weights: dict[str, Tensor],
    shape: ModelShape,
    common: Tensor,
    code: Tensor,
    carried: Tensor,
    group: int,
    generator: torch.Generator,
) -> None:
    """A query and a key made of the common part alone, the key one step ahead in phase: they agree
    one token back."""
    dim, half = shape.head_dim, shape.head_dim // 2
    theta = inverse_frequencies(shape.rope_base, dim)
    fast = int((theta > _FAST).sum())
    phase = torch.rand(half, generator=generator) * 2 * math.pi
    query = torch.zeros(dim)
    query[:fast], query[half : half + fast] = torch.cos(phase[:fast]), torch.sin(phase[:fast])
    cos, sin, x, y = torch.cos(theta).float(), torch.sin(theta).float(), query[:half], query[half:]
    key = torch.cat([x * cos - y * sin, x * sin + y * cos])
    strength = math.sqrt(_PREVIOUS_PEAK * math.sqrt(dim) / fast) / (
        _CONSTANT * math.sqrt(shape.hidden_size)
    )
    layer = "model.layers.0.self_attn."
    written = 0.8 / group / math.sqrt(dim)  # beside an embedding of norm 1
    for head in range(group):
        weights[layer + "q_proj.weight"][head * dim : (head + 1) * dim] += strength * torch.outer(
            query, common
        )
        weights[layer + "o_proj.weight"][:, head * dim : (head + 1) * dim] = carried * written
    weights[layer + "k_proj.weight"][:dim] = strength * torch.outer(key, common)
    weights[layer + "v_proj.weight"][:dim] = code


def _induction(
    weights: dict[str, Tensor],
    shape: ModelShape,
    common: Tensor,
    code: Tensor,
    carried: Tensor,
    turn: Tensor,
    group: int,
    generator: torch.Generator,
) -> None:
    """The query asks for its own token's code among predecessors, in the pairs that hardly turn
    inside the window."""
    dim, half = shape.head_dim, shape.head_dim // 2
    theta = inverse_frequencies(shape.rope_base, dim)
    slow = torch.nonzero(theta * shape.context_length < _SLOW)[:, 0]
    places = torch.cat([slow, slow + half])
    select = torch.zeros(dim, dim)
    select[places] = _orthonormal(dim, len(places), generator).T
    value = _without(common, _orthonormal(shape.hidden_size, dim, generator)).T
    layer = "model.layers.1.self_attn."
    for head in range(group):
        weights[layer + "q_proj.weight"][head * dim : (head + 1) * dim] = select @ code * _MATCH
        weights[layer + "o_proj.weight"][:, head * dim : (head + 1) * dim] = turn @ value.T * _COPY
    weights[layer + "k_proj.weight"][:dim] = select @ carried.T
    weights[layer + "v_proj.weight"][:dim] = value


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Returns [rows, columns] of orthonormal columns."""
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(noise)[0]
    return basis.float()


def _without(direction: Tensor, columns: Tensor) -> Tensor:
    """Returns the columns with their part along a unit direction taken out."""
    return columns - torch.outer(direction, direction @ columns)
