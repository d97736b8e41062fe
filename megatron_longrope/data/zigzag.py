"""Zigzag shares: which tokens of a packed batch each context-parallel rank holds.

Each document is cut in 2·size equal chunks, and rank r holds chunks r and 2·size − 1 − r, in this
order. Under causal attention the queries of chunk c attend to chunks 0 … c, so its cost grows as
c + ½; an early and a late chunk together cost r + ½ + 2·size − 1 − r + ½ = 2·size on every rank.
Transformer Engine cuts packed documents the same way, so one slicing serves both engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.errors import InputError


def context_share(batch: DocumentBatch, rank: int, size: int) -> DocumentBatch:
    """Returns the share of rank `rank` of `size` of a whole batch.

    `tokens`, `labels`, `loss_mask` and `positions` are cut. `cu_seqlens`, `max_length` and
    `longest` still describe the whole batch. Labels were shifted and positions counted before the
    cut, so both stay right. Raises InputError where a document's padded length is no multiple of
    2·size.
    """
    if size == 1:
        return batch
    assert batch.context_size == 1, "a share is not cut again"
    index = share_index(batch.cu_seqlens, rank, size).to(batch.tokens.device)
    cut = {
        name: getattr(batch, name)[index] for name in ("tokens", "labels", "loss_mask", "positions")
    }
    return replace(batch, **cut, context_size=size)


def share_index(cu_seqlens: Tensor, rank: int, size: int) -> Tensor:
    """Returns the place in the whole batch of each token of a share, int64 [total / size].

    >>> share_index(torch.tensor([0, 8]), rank=0, size=2).tolist()  # one document of 8 tokens
    [0, 1, 6, 7]
    >>> share_index(torch.tensor([0, 8]), rank=1, size=2).tolist()
    [2, 3, 4, 5]
    """
    bounds = cu_seqlens.tolist()
    parts = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        chunk, rest = divmod(stop - start, 2 * size)
        if rest:
            raise InputError(
                "document length",
                stop - start,
                f"context_parallel={size} cuts documents in {2 * size}",
            )
        for place in (rank, 2 * size - 1 - rank):
            parts.append(torch.arange(start + place * chunk, start + (place + 1) * chunk))
    return torch.cat(parts)


def whole_from_shares(shares: Sequence[Tensor], cu_seqlens: Tensor, dim: int = -1) -> Tensor:
    """Returns the whole made of every rank's share, in rank order; `dim` is the tokens'.

    It is the inverse of `context_share`.
    """
    if len(shares) == 1:
        return shares[0]
    size = len(shares)
    index = torch.cat([share_index(cu_seqlens, rank, size) for rank in range(size)]).to(
        shares[0].device
    )
    joined = torch.cat(list(shares), dim=dim)
    return torch.empty_like(joined).index_copy_(dim, index, joined)
