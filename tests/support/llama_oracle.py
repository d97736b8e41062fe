"""Llama's forward pass written out in plain float64 torch, for given RoPE angles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def longrope_angles(
    length: int, *, base: float, head_dim: int, rescale: tuple[float, ...], start_tokens: int
) -> Tensor:
    """Returns angles [length, head_dim/2]: n·θ_i for positions n < n̂, and n·θ_i/λ_i from n̂ on."""
    rows = [
        [
            n * base ** (-2 * i / head_dim) / (1.0 if n < start_tokens else rescale[i])
            for i in range(head_dim // 2)
        ]
        for n in range(length)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def oracle_logits(
    weights: Mapping[str, Tensor],
    config: Any,
    tokens: Tensor,
    angles: Tensor,
    attention_factor: float = 1.0,
) -> Tensor:
    """Returns float64 logits [tokens, vocabulary] of a Llama with Hugging Face's weight names.

    Args:
        weights: all weights by name.
        config: the model's config, as transformers has it.
        tokens: [tokens] of token ids.
        angles: RoPE angles [tokens, head_dim/2].
        attention_factor: factor of cos and sin.
    """
    w = {name: weight.double() for name, weight in weights.items()}
    hidden = w["model.embed_tokens.weight"][tokens]
    for layer in range(config.num_hidden_layers):
        of = f"model.layers.{layer}."
        normed = _rms_norm(hidden, w[of + "input_layernorm.weight"], config.rms_norm_eps)
        heads = _attention(
            lambda part, of=of: w[f"{of}self_attn.{part}_proj.weight"],
            config,
            normed,
            angles,
            attention_factor,
        )
        hidden = hidden + heads @ w[of + "self_attn.o_proj.weight"].T
        normed = _rms_norm(hidden, w[of + "post_attention_layernorm.weight"], config.rms_norm_eps)
        gate, up = (normed @ w[f"{of}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        hidden = hidden + (gate / (1 + torch.exp(-gate)) * up) @ w[of + "mlp.down_proj.weight"].T
    final = _rms_norm(hidden, w["model.norm.weight"], config.rms_norm_eps)
    return (
        final @ w["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"].T
    )


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * weight


def _attention(
    weight: Callable[[str], Tensor], config: Any, x: Tensor, angles: Tensor, attention_factor: float
) -> Tensor:
    length, dim = len(x), config.head_dim
    query, key, value = ((x @ weight(part).T).reshape(length, -1, dim) for part in "qkv")
    query, key = (attention_factor * _rotated(part, angles) for part in (query, key))
    shared = config.num_attention_heads // config.num_key_value_heads
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    outputs = []
    for head in range(config.num_attention_heads):
        scores = query[:, head] @ key[:, head // shared].T / math.sqrt(dim)
        outputs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value[:, head // shared])
    return torch.cat(outputs, dim=-1)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Returns x [length, heads, dim] with the pairs (x_i, x_{i + dim/2}) of every head rotated."""
    half = x.shape[-1] // 2
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
