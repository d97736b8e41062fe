"""Causal attention within documents whose tokens are spread zigzag over a context-parallel group.

Rank r of n holds chunks r and 2n − 1 − r of every document (data/zigzag.py). So for the keys of
another rank s it has only two kinds of work, none of it masked and both of the same size: all its
queries attend the early chunk of s < r; its late queries attend all of s > r. Its own keys are one
causal block. Results are merged by log-sum-exp; K/V travel by a `context_exchange`, and no scores
outlive their block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrope.model.attention.context_exchange import ExchangeKind, Pair, exchange_over
from megatron_longrope.model.attention.context_runs import Run, Runs, cut_keys, cut_runs, runs_of
from megatron_longrope.model.attention.kernels import BlockKernel, kernel_for, merge

TILE_TOKENS = 1024
"""Queries per kernel call where another rank's keys are attended, with all heads: what is merged
stays this small."""
MOST_HEAD_GROUPS, GROUPED_FROM_TOKENS = 4, 4096
"""Where nothing is kept for a backward pass, shares from so many tokens on go through some heads at
a time."""
MOST_PIECES, PIECE_TOKENS = 8, 2048
"""K/V of such a share travel in pieces of at least so many tokens, of which three are held at a
time."""


@dataclass(frozen=True)
class AttentionCall:
    """What one call of `attend` is about, beside its tensors."""

    runs: Runs
    scale: float
    group: dist.ProcessGroup
    exchange: ExchangeKind
    tile_tokens: int
    num_pieces: int = 1
    """In which K/V travel."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    document_lengths: Sequence[int],
    scale: float,
    group: dist.ProcessGroup,
    exchange: ExchangeKind = "ring",
    overwrite: bool = False,
) -> Tensor:
    """Returns [tokens, heads, head_dim] for a query of that shape and K/V [tokens, kv_heads,
    head_dim].

    `document_lengths` are whole ones, padding included; `tokens` is this rank's share of their sum.

    `overwrite`: nothing is kept for a backward pass, and the output takes the place of the queries,
    some heads at a time; K/V may be lost. K/V laid out by head ([kv_heads, tokens, head_dim] in
    memory) are then copied piece by piece as they leave, and never as a whole.
    """
    call = AttentionCall(
        runs_of(document_lengths, group.size()), scale, group, exchange, TILE_TOKENS
    )
    if not overwrite:
        out: Tensor = _Attention.apply(query, key, value, call)  # type: ignore[no-untyped-call]
        return out
    num_groups = (
        math.gcd(key.shape[1], MOST_HEAD_GROUPS) if query.shape[0] >= GROUPED_FROM_TOKENS else 1
    )
    call = replace(
        call,
        tile_tokens=TILE_TOKENS * num_groups,
        num_pieces=_num_pieces(call.runs, query.shape[0]),
    )
    for q, k, v in zip(*(x.chunk(num_groups, dim=1) for x in (query, key, value)), strict=True):
        q.copy_(_forward(q, (_by_head(k), _by_head(v)), call, overwrite)[0])
    return query


def _num_pieces(runs: Runs, tokens: int) -> int:
    """Returns how many pieces a share's K/V travel in; with more than the longest chunk's tokens
    some were empty."""
    if tokens < GROUPED_FROM_TOKENS:
        return 1
    return max(1, min(MOST_PIECES, tokens // PIECE_TOKENS, max(run.length // 2 for run in runs)))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        own = _by_head(key), _by_head(value)
        out, sums = _forward(query, own, call, overwrite=False)
        ctx.call = call
        ctx.save_for_backward(query, *own, out, *sums)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        grad_query, (grad_key, grad_value) = _backward(
            grad, query, (key, value), out, sums, ctx.call
        )
        return (
            grad_query,
            *(x.to(query.dtype).transpose(0, 1) for x in (grad_key, grad_value)),
            None,
        )


def _forward(
    query: Tensor, own: Pair, call: AttentionCall, overwrite: bool
) -> tuple[Tensor, list[Tensor]]:
    """Returns the output, and the log-sum-exp [documents, heads, length] of each run.

    K/V are [kv_heads, tokens, head_dim] from here on.
    """
    kernel, rank = kernel_for(query), call.group.rank()
    out: Tensor | None = None
    sums: list[Tensor] = []
    pieces, cut = cut_keys(own, call.runs, call.num_pieces), cut_runs(call.runs, call.num_pieces)
    for source, piece, lent in exchange_over(call.group, call.exchange).visit(
        own, pieces, overwrite
    ):
        if source == rank:
            out, sums = _own_blocks(kernel, query, lent, call)
            continue
        assert out is not None
        for index, tile in _tiles(call, cut[piece], source > rank):
            keys, values = (tile.keys_of(x, source > rank) for x in lent)
            part, part_sum = kernel.forward(tile.of(query), keys, values, False, call.scale)
            # indexing a log-sum-exp by slices gives a view: merging writes through it
            merge(tile.of(out), sums[index][tile.documents, :, tile.places], part, part_sum)
            del part  # before the next one is made
    assert out is not None
    return out.to(query.dtype), sums


def _own_blocks(
    kernel: BlockKernel, query: Tensor, own: Pair, call: AttentionCall
) -> tuple[Tensor, list[Tensor]]:
    """The causal blocks of each run; the output is in float32 at least where more is to be merged
    into it."""
    dtype = (
        torch.promote_types(query.dtype, torch.float32) if call.group.size() > 1 else query.dtype
    )
    out: Tensor | None = None
    sums = []
    for run in call.runs:
        q, k, v = (run.of(x) for x in (query, *map(_by_token, own)))
        part, part_sum = kernel.forward(q, k, v, True, call.scale)
        out = _put(out, query, run, part, dtype)
        sums.append(part_sum)
    assert out is not None
    return out, sums


def _backward(
    grad: Tensor, query: Tensor, own: Pair, out: Tensor, sums: Sequence[Tensor], call: AttentionCall
) -> tuple[Tensor, Pair]:
    kernel, rank = kernel_for(query), call.group.rank()
    wide = torch.promote_types(query.dtype, torch.float32) if call.group.size() > 1 else query.dtype
    exchange = exchange_over(call.group, call.exchange)
    grad_query: Tensor | None = None
    for source, _, lent in exchange.visit(own, [own], overwrite=False):
        if source == rank:
            grad_query, gradients = _own_gradients(kernel, grad, query, lent, out, sums, call, wide)
        else:
            assert grad_query is not None
            gradients = torch.zeros_like(lent[0], dtype=wide), torch.zeros_like(lent[1], dtype=wide)
            for index, tile in _tiles(call, call.runs, source > rank):
                keys, values = (tile.keys_of(x, source > rank) for x in lent)
                part_sum = sums[index][tile.documents, :, tile.places].contiguous()
                grad_q, *grad_kv = kernel.backward(
                    tile.of(grad),
                    tile.of(query),
                    keys,
                    values,
                    tile.of(out),
                    part_sum,
                    False,
                    call.scale,
                )
                tile.of(grad_query).add_(grad_q)
                for total, part in zip(gradients, grad_kv, strict=True):
                    tile.keys_of(total, source > rank).add_(part)
        exchange.give(source, gradients)
    assert grad_query is not None
    return grad_query.to(query.dtype), exchange.collect()


def _own_gradients(
    kernel: BlockKernel,
    grad: Tensor,
    query: Tensor,
    own: Pair,
    out: Tensor,
    sums: Sequence[Tensor],
    call: AttentionCall,
    wide: torch.dtype,
) -> tuple[Tensor, Pair]:
    totals: list[Tensor | None] = [None, None, None]
    tensors = (query, *map(_by_token, own))
    for run, part_sum in zip(call.runs, sums, strict=True):
        upstream, q, k, v, result = (run.of(x) for x in (grad, *tensors, out))
        parts = kernel.backward(upstream, q, k, v, result, part_sum, True, call.scale)
        totals = [
            _put(total, x, run, part, wide)
            for total, x, part in zip(totals, tensors, parts, strict=True)
        ]
    grad_query, grad_key, grad_value = totals
    assert grad_query is not None and grad_key is not None and grad_value is not None
    return grad_query, (_by_head(grad_key), _by_head(grad_value))


class _Tile(NamedTuple):
    """Some queries of a run: documents × places within this rank's share of a document."""

    run: Run
    keys: Run
    documents: slice
    places: slice

    def of(self, x: Tensor) -> Tensor:
        """Returns this tile of x [tokens, heads, head_dim] as a view [documents, heads, places,
        head_dim]."""
        return self.run.of(x)[self.documents, :, self.places]

    def keys_of(self, x: Tensor, whole: bool) -> Tensor:
        """Returns the same documents' keys: of a later rank all that came, of an earlier one its
        early chunk's."""
        return self.keys.of(_by_token(x))[
            self.documents, :, : self.keys.length if whole else self.keys.length // 2
        ]


def _tiles(call: AttentionCall, key_runs: Runs, late_only: bool) -> Iterator[tuple[int, _Tile]]:
    """Yields (index of the run, tile) over all queries, or over each document's late chunk, where
    there are keys."""
    for index, (run, keys) in enumerate(zip(call.runs, key_runs, strict=True)):
        if keys.length == 0:
            continue
        first = run.length // 2 if late_only else 0
        together = max(1, call.tile_tokens // (run.length - first))
        for document in range(0, run.num_documents, together):
            documents = slice(document, min(document + together, run.num_documents))
            for place in range(first, run.length, call.tile_tokens):
                places = slice(place, min(place + call.tile_tokens, run.length))
                yield index, _Tile(run, keys, documents, places)


def _by_head(x: Tensor) -> Tensor:
    """Returns x [tokens, heads, head_dim] as a contiguous [heads, tokens, head_dim], copied unless
    it lies so."""
    return x.transpose(0, 1).contiguous()


def _by_token(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _put(whole: Tensor | None, like: Tensor, run: Run, part: Tensor, dtype: torch.dtype) -> Tensor:
    """Puts a run's result in its place of `whole`; where the run is all there is, it becomes the
    whole uncopied."""
    laid = part.transpose(1, 2)
    if run.rows.stop - run.rows.start == like.shape[0]:
        return laid.to(dtype).reshape(like.shape)
    whole = torch.empty_like(like, dtype=dtype) if whole is None else whole
    whole[run.rows].unflatten(0, (-1, run.length)).copy_(laid)
    return whole
