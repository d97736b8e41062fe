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
    """Returns attention [rows, heads, length, head_dim] within a window before each query.

    The same as transformers' `sliding_window`, without a mask of length²: queries go through in
    blocks, each block with those keys only that one of its queries can see.

    Args:
        query: Queries [rows, heads, length, head_dim].
        key: Keys [rows, kv_heads, length, head_dim]; heads is a multiple of kv_heads.
        value: Values, of the keys' shape.
        window: Tokens a query sees: itself and the `window` − 1 before it.
        scale: Factor of q·k before the softmax.

    >>> ones = torch.ones(1, 1, 4, 1)
    >>> counting = torch.arange(4.0).reshape(1, 1, 4, 1)
    >>> windowed_attention(ones, ones, counting, window=2, scale=1.0).flatten().tolist()
    [0.0, 0.5, 1.5, 2.5]
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
    """Returns attention [tokens, heads · head_dim] within each of the documents laid end to end.

    Args:
        query: Queries [tokens, heads, head_dim].
        key: Keys [tokens, kv_heads, head_dim].
        value: Values, of the keys' shape.
        lengths: Tokens of each document, padding included; neighbours of one length share a call.
        window: Tokens a query sees, itself included.
        scale: Factor of q·k before the softmax.
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
