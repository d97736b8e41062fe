"""Causal attention within documents whose tokens are spread zigzag over a context-parallel group.

Every document is cut in 2n chunks for n ranks, and rank r holds chunk r (its early chunk) and chunk
2n − 1 − r (its late chunk), see data/zigzag.py. What rank r's queries may see of rank s's keys:

- s = r: one causal block. The early chunk comes before the late one, so the usual triangle over
  the two chunks laid end to end is right although they are not neighbours in the document.
- s < r: chunk s comes before both of r's chunks, and chunk 2n − 1 − s after both. So all queries of
  r attend to all keys of s's early chunk, and to none of its late chunk.
- s > r: chunks s and 2n − 1 − s both come after r's early chunk and before its late one. So the
  late queries of r attend to all keys of s, and the early queries to none.

The last two cases need no mask and are the same amount of work (2c × c against c × 2c scores for
chunks of c tokens), so every rank is equally busy at every step of the ring.

Each block over some keys gives its own softmax. Blocks are merged by their log-sum-exps
(`kernels.merge`), as in Ring Attention (arXiv 2310.01889). For the backward pass only the merged
output O and log-sum-exp L are kept: with P = exp(scores − L) and D = Σ dO·O per query, a block's
dScores = P ∘ (dO·Vᵀ − D) need nothing from other blocks. No scores outlive their block.

K/V travel by a `context_exchange`: at step i of a ring rank r works with the keys of (r − i) mod n.
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
from megatron_longrope.model.attention.context_runs import (
    DocumentRun,
    Runs,
    cut_keys,
    cut_runs,
    runs_of,
)
from megatron_longrope.model.attention.kernels import BlockKernel, kernel_for, merge

TILE_TOKENS = 1024
"""Queries per kernel call over another rank's keys, all heads together.

Each call's output exists twice, in the kernel's result and in the merged output. Tiles keep the
first of them small.
"""
MOST_HEAD_GROUPS, GROUPED_FROM_TOKENS = 4, 4096
"""Without a backward pass, shares of at least this many tokens are computed some heads at a time.

At most 4 groups of heads, one after the other: the exchange then holds K/V of one group only.
"""
MOST_PIECES, PIECE_TOKENS = 8, 2048
"""K/V of a share that long travel in up to 8 pieces of at least this many tokens.

The ring holds three pieces at a time beside the share's own K/V.
"""


@dataclass(frozen=True)
class AttentionCall:
    """What one call of `attend` needs to know beside its tensors."""

    runs: Runs
    """Where this rank's share of each document lies among its tokens."""
    scale: float
    """Factor of q·k before the softmax."""
    group: dist.ProcessGroup
    exchange: ExchangeKind
    tile_tokens: int
    """Queries per kernel call over another rank's keys."""
    num_pieces: int = 1
    """Number of pieces in which K/V travel."""


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
    """Returns the attention output [tokens, heads, head_dim] of this rank's queries.

    All ranks of the group call this together.

    Args:
        query: Rotated queries of this rank's share, [tokens, heads, head_dim].
        key: Rotated keys of the same tokens, [tokens, kv_heads, head_dim]; heads is a multiple of
            kv_heads.
        value: Values, of the keys' shape.
        document_lengths: Tokens of each whole document, padding included; each is a multiple of
            2 · ranks, and `tokens` is their sum / ranks.
        scale: Factor of q·k before the softmax.
        group: The context-parallel group.
        exchange: How K/V travel between its ranks.
        overwrite: Allowed in evaluation only: nothing is kept for a backward pass, the output
            takes the place of the queries, some heads at a time, and K/V may be lost. K/V that lie
            by head in memory (as [kv_heads, tokens, head_dim]) are then copied piece by piece as
            they leave, never as a whole.
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
    """Returns how many pieces a share's K/V travel in.

    Never more than the longest document's chunk has tokens, or some pieces would be empty.
    """
    if tokens < GROUPED_FROM_TOKENS:
        return 1
    return max(1, min(MOST_PIECES, tokens // PIECE_TOKENS, max(run.length // 2 for run in runs)))


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, the output and the log-sum-exps: no other rank's K/V, and no scores.

    The backward pass sends K/V around once more. Kept from the forward pass they would be the whole
    sequence's on every rank, which context parallelism is there to avoid.
    """

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
    """Returns the output, and for each run the log-sum-exps [documents, heads, length].

    K/V are [kv_heads, tokens, head_dim] from here on, the layout in which they travel.
    """
    kernel, rank = kernel_for(query), call.group.rank()
    out: Tensor | None = None
    sums: list[Tensor] = []
    pieces, cut = cut_keys(own, call.runs, call.num_pieces), cut_runs(call.runs, call.num_pieces)
    for source, piece, lent in exchange_over(call.group, call.exchange).visit(
        own, pieces, overwrite
    ):
        if source == rank:
            # Always the first, and it covers every query: later blocks are merged into it.
            out, sums = _own_blocks(kernel, query, lent, call)
            continue
        assert out is not None
        # From a later rank: late queries × all keys. From an earlier one: all queries × early keys.
        for index, tile in _tiles(call, cut[piece], source > rank):
            keys, values = (tile.keys_of(x, source > rank) for x in lent)
            part, part_sum = kernel.forward(tile.of(query), keys, values, False, call.scale)
            # Indexing a log-sum-exp by slices gives a view: merging writes through it.
            merge(tile.of(out), sums[index][tile.documents, :, tile.places], part, part_sum)
            del part  # so that only one exists at a time
    assert out is not None
    return out.to(query.dtype), sums


def _own_blocks(
    kernel: BlockKernel, query: Tensor, own: Pair, call: AttentionCall
) -> tuple[Tensor, list[Tensor]]:
    """Returns output and log-sum-exps of the causal blocks over this rank's own keys, run by run.

    The output is float32 at least where other ranks' blocks are to be merged into it: rounding to
    BF16 after each of them would add up.
    """
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
    """Returns the gradients of this rank's queries and of its own K/V.

    K/V visit every rank as in the forward pass. The gradient of a query is summed here, where the
    query stays. The gradients of K/V are given to the exchange, which brings them home.
    """
    kernel, rank = kernel_for(query), call.group.rank()
    # Sums over ranks are kept in float32 at least.
    wide = torch.promote_types(query.dtype, torch.float32) if call.group.size() > 1 else query.dtype
    exchange = exchange_over(call.group, call.exchange)
    grad_query: Tensor | None = None
    for source, _, lent in exchange.visit(own, [own], overwrite=False):
        if source == rank:
            grad_query, gradients = _own_gradients(kernel, grad, query, lent, out, sums, call, wide)
        else:
            assert grad_query is not None
            # Zero where nothing attends: an earlier rank's late chunk gets no gradient from here.
            gradients = torch.zeros_like(lent[0], dtype=wide), torch.zeros_like(lent[1], dtype=wide)
            for index, tile in _tiles(call, call.runs, source > rank):
                keys, values = (tile.keys_of(x, source > rank) for x in lent)
                # The merged log-sum-exp and output, not this block's: exp(scores − L) is then the
                # block's part of the softmax over all keys.
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
    """Returns the gradients from the causal blocks over this rank's own keys, in dtype `wide`."""
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
    """Some queries of one run, and the keys of the same documents on another rank."""

    run: DocumentRun
    keys: DocumentRun
    """Where the same documents' keys lie in what the other rank sent."""
    documents: slice
    """Documents of the run."""
    places: slice
    """Tokens within this rank's share of each document."""

    def of(self, x: Tensor) -> Tensor:
        """Returns the tile's part of x [tokens, heads, head_dim] as a view.

        The view is [documents, heads, places, head_dim].
        """
        return self.run.of(x)[self.documents, :, self.places]

    def keys_of(self, x: Tensor, whole: bool) -> Tensor:
        """Returns a view of the documents' keys in x, what was sent: all, or the first half.

        The first half of a document's keys is the other rank's early chunk, for every piece too.
        """
        return self.keys.of(_by_token(x))[
            self.documents, :, : self.keys.length if whole else self.keys.length // 2
        ]


def _tiles(call: AttentionCall, key_runs: Runs, late_only: bool) -> Iterator[tuple[int, _Tile]]:
    """Yields (index of the run, tile) for all queries, or for those in late chunks only.

    Short documents share a tile, long ones are cut into several. Documents of which the piece holds
    no keys are left out.
    """
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
    """Returns x [tokens, heads, head_dim] as a contiguous [heads, tokens, head_dim].

    Copies only where x does not lie like this in memory already.
    """
    return x.transpose(0, 1).contiguous()


def _by_token(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _put(
    whole: Tensor | None, like: Tensor, run: DocumentRun, part: Tensor, dtype: torch.dtype
) -> Tensor:
    """Returns `whole` [tokens, heads, head_dim] with one run's result `part` put in its place.

    A run that covers all tokens becomes the whole itself, without a copy.
    """
    laid = part.transpose(1, 2)
    if run.rows.stop - run.rows.start == like.shape[0]:
        return laid.to(dtype).reshape(like.shape)
    whole = torch.empty_like(like, dtype=dtype) if whole is None else whole
    whole[run.rows].unflatten(0, (-1, run.length)).copy_(laid)
    return whole
