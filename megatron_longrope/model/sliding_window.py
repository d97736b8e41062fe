"""Causal attention that reaches back a fixed number of tokens, in memory linear in the length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_MAX_BLOCK = 1024


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float) -> Tensor:
    """Returns [rows, heads, length, head_dim] where each query sees itself and the `window` − 1 tokens before it.

    query [rows, heads, length, head_dim]; key and value may have fewer heads. Queries go through in blocks, each with
    the keys any of them can see: transformers' `sliding_window`, without a mask of length².
    """
    length, grouped = query.shape[2], query.shape[1] != key.shape[1]
    block = min(max(window, 64), _MAX_BLOCK)
    parts = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = max(0, start - window + 1)
        rows = torch.arange(start, stop, device=query.device)[:, None]
        columns = torch.arange(first, stop, device=query.device)
        seen = (columns <= rows) & (columns > rows - window)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, first:stop],
                value[:, :, first:stop],
                attn_mask=seen,
                scale=scale,
                enable_gqa=grouped,
            )
        )
    return torch.cat(parts, dim=2)
