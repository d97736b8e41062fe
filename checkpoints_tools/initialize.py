"""Fresh models as Hugging Face folders: Gaussian weights, or weights with an induction circuit.

Small models spend most of a short training on discovering the induction circuit (Olsson et al.
2022, arXiv 2209.11895): a head that carries each token's predecessor along, and a later head that
finds where the current token was a predecessor and copies what followed. `retrieval` writes that
circuit into the first two layers; training may change all of it afterwards. The idea follows
mimetic initialization (Trockman & Kolter 2023, arXiv 2305.09828).

How the circuit computes, in terms of the residual stream (one vector per token):

- Every embedding is the token's own part plus a part `common` to all tokens. Without biases, a
  constant query or key has to be made from that common part.
- Layer 0, previous-token heads: query and key come from the common part alone, so their product
  depends on the distance alone and peaks at one token back. Value and output write the `code` of
  the previous token (a projection to head_dim numbers) into the subspace `carried`.
- Layer 1, induction heads: the query reads the code of its own token, the key reads `carried`. They
  match where the current token was the predecessor; value and output copy the token standing there.
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
"""Length of the part that all embeddings (of norm 1) share; it stands in for a bias of q and k."""
_PREVIOUS_PEAK = 12.0
"""Attention logit by which the previous token stands out in layer 0."""
_MATCH = 3.0
"""Strength of the match between a token and another's predecessor in layer 1."""
_COPY = 0.3
"""How strongly the matched token's successor is written towards the output."""
_FAST, _SLOW = 0.35, 1.2
"""Angles in radians by which RoPE pairs are chosen for the two layers.

Pairs that turn more than _FAST per token tell positions apart (layer 0). Pairs that turn less than
_SLOW over the whole window hardly rotate, so that contents match at any distance in it (layer 1).
"""


def initialize_model(
    shape: ModelShape, scheme: Scheme, seed: int, folder: Path, tokenizer_folder: Path | None = None
) -> None:
    """Writes a fresh model of `shape` as float32 safetensors with config and tokenizer files.

    Raises InputError where `retrieval` does not fit the shape.

    Args:
        shape: sizes of the model.
        scheme: "normal" for Gaussian weights, "retrieval" for an induction circuit besides.
        seed: fixes all random draws.
        folder: the Hugging Face folder to write.
        tokenizer_folder: folder whose tokenizer files are copied; None writes a model without.
    """
    weights = initial_weights(shape, scheme, seed)
    geometry = RopeGeometry(
        base=shape.rope_base, head_dim=shape.head_dim, original_length=shape.context_length
    )
    rope = hf_rope_config(FactorSet.single(NoScaling().factors(geometry)))
    config = shape.to_hf() | rope | {"torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 0}
    write_hf_folder(folder, config, iter(weights.items()), carried_from=tokenizer_folder)


def initial_weights(shape: ModelShape, scheme: Scheme, seed: int) -> dict[str, Tensor]:
    """Returns all weights by their Hugging Face names, in float32, the same bits for the same seed.

    Projections that write to the residual stream are drawn smaller by √(2 · num_layers), as in
    GPT-2, since so many of them add up there.
    """
    generator = torch.Generator().manual_seed(seed)
    deep = shape.initializer_range / math.sqrt(2 * shape.num_layers)
    weights = {}
    for name, size in hf_sizes(shape).items():
        if len(size) == 1:  # weights of norms
            weights[name] = torch.ones(size)
            continue
        writes_to_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = deep if writes_to_residual else shape.initializer_range
        weights[name] = torch.randn(size, generator=generator) * std
    if scheme == "retrieval":
        _write_circuit(weights, shape, generator)
    return weights


def _write_circuit(
    weights: dict[str, Tensor], shape: ModelShape, generator: torch.Generator
) -> None:
    """Writes previous-token heads to the first group of layer 0, induction heads to layer 1's."""
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
    tokens -= torch.outer(tokens @ common, common)  # orthogonal to what all tokens share
    turn = _orthonormal(hidden, hidden, generator)
    weights["model.embed_tokens.weight"] = tokens + _CONSTANT * common
    # The output layer reads the embeddings turned by a random rotation: with the embeddings
    # themselves, the residual stream would predict each token as its own successor.
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
    """Writes heads whose attention peaks at the previous token, whatever the tokens are.

    Query and key are constants made from the common part. The key is the query turned by one
    position, R(1) q, so that (R(m) q) · (R(n) R(1) q) is largest at n + 1 = m.
    """
    dim, half = shape.head_dim, shape.head_dim // 2
    theta = inverse_frequencies(shape.rope_base, dim)
    fast = int((theta > _FAST).sum())
    phase = torch.rand(half, generator=generator) * 2 * math.pi
    query = torch.zeros(dim)
    query[:fast], query[half : half + fast] = torch.cos(phase[:fast]), torch.sin(phase[:fast])
    cos, sin, x, y = torch.cos(theta).float(), torch.sin(theta).float(), query[:half], query[half:]
    key = torch.cat([x * cos - y * sin, x * sin + y * cos])
    # After the norm an embedding's common part has length _CONSTANT · √hidden_size, and the `fast`
    # pairs of the query have length 1 each. So at one token back q·k/√head_dim is _PREVIOUS_PEAK.
    strength = math.sqrt(_PREVIOUS_PEAK * math.sqrt(dim) / fast) / (
        _CONSTANT * math.sqrt(shape.hidden_size)
    )
    layer = "model.layers.0.self_attn."
    # v has length √head_dim or so, and all heads of the group write the same: 0.8 in all, beside an
    # embedding of norm 1
    written = 0.8 / group / math.sqrt(dim)
    for head in range(group):
        rows = slice(head * dim, (head + 1) * dim)
        weights[layer + "q_proj.weight"][rows] += strength * torch.outer(query, common)
        weights[layer + "o_proj.weight"][:, rows] = carried * written
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
    """Writes heads that attend to the successors of earlier copies of the current token.

    The query is the code of its own token, the key the code of the predecessor that layer 0 wrote.
    Both lie in the pairs that RoPE hardly turns within the window.
    """
    dim, half = shape.head_dim, shape.head_dim // 2
    theta = inverse_frequencies(shape.rope_base, dim)
    slow = torch.nonzero(theta * shape.context_length < _SLOW)[:, 0]
    places = torch.cat([slow, slow + half])  # HF's layout: pair i is dims i and i + half
    select = torch.zeros(dim, dim)
    select[places] = _orthonormal(dim, len(places), generator).T
    value = _without(common, _orthonormal(shape.hidden_size, dim, generator)).T
    layer = "model.layers.1.self_attn."
    for head in range(group):
        rows = slice(head * dim, (head + 1) * dim)
        weights[layer + "q_proj.weight"][rows] = select @ code * _MATCH
        # `turn` takes the copied embedding to what the output layer reads as that token
        weights[layer + "o_proj.weight"][:, rows] = turn @ value.T * _COPY
    weights[layer + "k_proj.weight"][:dim] = select @ carried.T
    weights[layer + "v_proj.weight"][:dim] = value


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Returns a random matrix [rows, columns] with orthonormal columns."""
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(noise)[0]
    return basis.float()


def _without(direction: Tensor, columns: Tensor) -> Tensor:
    """Returns `columns` without their components along the unit vector `direction`."""
    return columns - torch.outer(direction, direction @ columns)
