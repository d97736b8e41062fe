"""Causal attention that reaches back a fixed number of tokens, in memory linear in the length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_MAX_BLOCK = 1024


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float
) -> Tensor:
    """Returns [rows, heads, length, head_dim] where each query sees itself and the `window` − 1
    tokens before it.

    query [rows, heads, length, head_dim]; key and value may have fewer heads. Queries go through in
    blocks, each with the keys any of them can see: transformers' `sliding_window`, without a mask
    of length².
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


def windowed_documents(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], *, window: int, scale: float
) -> Tensor:
    """Returns [tokens, heads · head_dim] of documents laid end to end, of `lengths` tokens, padding
    included.

    query [tokens, heads, head_dim]; key and value may have fewer heads. Neighbours of one length
    share their calls.
    """
    parts, start = [], 0
    for length, group in groupby(lengths):
        stop = start + length * len(list(group))
        rows = [
            x[start:stop].reshape(-1, length, x.shape[1], x.shape[2]).transpose(1, 2)
            for x in (query, key, value)
        ]
        out = windowed_attention(*rows, window=window, scale=scale)
        parts.append(out.transpose(1, 2).reshape(stop - start, -1))
        start = stop
    return torch.cat(parts)
