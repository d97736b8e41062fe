"""Per-token negative log-likelihood over a vocabulary-parallel output layer; logits exist one block
at a time.

A block is some tokens × some vocabulary rows. Neither the peak of memory nor the size of a matrix
product depends on the vocabulary: the log-sum-exp is built up block by block, and the backward pass
makes each block again, turns it into softmax − one-hot in place, and adds its two matrix products
up. Where the weight is frozen the hidden states' product is built up in the forward pass, beside
the log-sum-exp, and nothing is made again: a token's upstream gradient is one number, by which its
row is multiplied later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import linear

DEFAULT_CHUNK_TOKENS = 1024
BLOCK_VOCABULARY = 2048
_LOWEST = -1e30  # finite, so that a rank whose rows are all padding stays free of NaN


def token_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> Tensor:
    """Returns nats [total] of `labels` [total] under hidden [total, hidden_size] · weightᵀ, float32
    at least.

    `weight` is this rank's share of the output layer's rows; rows from `vocab_size` on are padding
    and get no probability. The gradient of `hidden` is this rank's part of a sum over the group.
    """
    layer = _OutputLayer(group, vocab_size, chunk_tokens)
    return _TokenLosses.apply(hidden, weight, labels, layer)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def scored_tokens(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> Tensor:
    """Returns [2, total]: nats of each label, and 1 where it is the arg-max (ties go to the lowest
    id), else 0."""
    layer = _OutputLayer(group, vocab_size, chunk_tokens)
    result = hidden.new_empty(2, hidden.shape[0], dtype=_wide(hidden.dtype))
    for rows in layer.chunks(hidden):
        seen = _seen(hidden[rows], weight, labels[rows], layer)
        result[0, rows] = seen.log_sum - seen.target
        result[1, rows] = seen.best == labels[rows]
    return result


@torch.no_grad()
def full_logits(
    hidden: Tensor, weight: Tensor, *, vocab_size: int, group: dist.ProcessGroup
) -> Tensor:
    """Returns the whole logits [total, vocab_size]: for comparisons over short inputs only."""
    logits = linear(hidden, weight).to(_wide(hidden.dtype))
    shares = [torch.empty_like(logits) for _ in range(group.size())]
    dist.all_gather(shares, logits.contiguous(), group=group)
    return torch.cat(shares, dim=-1)[:, :vocab_size]


class _OutputLayer(NamedTuple):
    """What is fixed over one call. Rows of the weight are spread over `group` in rank order."""

    group: dist.ProcessGroup
    vocab_size: int
    chunk_tokens: int

    def chunks(self, hidden: Tensor) -> Iterator[slice]:
        for start in range(0, hidden.shape[0], self.chunk_tokens):
            yield slice(start, start + self.chunk_tokens)

    def blocks(self, weight: Tensor) -> Iterator[tuple[slice, int]]:
        """Yields this rank's rows block by block, padding left out, and the vocabulary id of each
        block's first."""
        first = self.group.rank() * weight.shape[0]
        rows = min(weight.shape[0], self.vocab_size - first)
        for start in range(0, rows, BLOCK_VOCABULARY):
            yield slice(start, min(start + BLOCK_VOCABULARY, rows)), first + start


class _Seen(NamedTuple):
    """What one pass over the vocabulary says of each token of a chunk: each [tokens]."""

    log_sum: Tensor
    target: Tensor
    best: Tensor
    """The id with the highest logit, the lowest of equals."""
    slope: Tensor | None = None
    """[tokens, hidden_size]: this rank's part of the gradient of the loss by the hidden states,
    where asked for."""


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, layer: _OutputLayer
    ) -> Tensor:
        losses = hidden.new_empty(hidden.shape[0], dtype=_wide(hidden.dtype))
        log_sums = torch.empty_like(losses)
        ctx.is_frozen = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        slopes = torch.empty_like(hidden) if ctx.is_frozen else None
        for rows in layer.chunks(hidden):
            seen = _seen(hidden[rows], weight, labels[rows], layer, with_slope=ctx.is_frozen)
            log_sums[rows] = seen.log_sum
            losses[rows] = seen.log_sum - seen.target
            if slopes is not None and seen.slope is not None:
                slopes[rows] = seen.slope
        ctx.layer = layer
        ctx.save_for_backward(*((slopes,) if ctx.is_frozen else (hidden, weight, labels, log_sums)))
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        if ctx.is_frozen:
            (slopes,) = ctx.saved_tensors
            return (slopes * grad[:, None]).to(slopes.dtype), None, None, None
        hidden, weight, labels, log_sums = ctx.saved_tensors
        layer: _OutputLayer = ctx.layer
        grad_hidden = torch.zeros_like(hidden)
        # summed over chunks in float32 at least, whatever the weights are in
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype))
        for rows in layer.chunks(hidden):
            part = hidden.new_zeros(hidden[rows].shape, dtype=_wide(hidden.dtype))
            for block, first in layer.blocks(weight):
                slope = _logits(hidden[rows], weight[block]).sub_(log_sums[rows, None]).exp_()
                local, mine = _local(labels[rows], first, slope.shape[1])
                slope.scatter_add_(1, local, -mine.to(slope.dtype))
                slope = slope.mul_(grad[rows, None]).to(hidden.dtype)
                part += slope @ weight[block]
                grad_weight[block] += slope.T @ hidden[rows]
            grad_hidden[rows] = part
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _seen(
    hidden: Tensor, weight: Tensor, labels: Tensor, layer: _OutputLayer, with_slope: bool = False
) -> _Seen:
    peak = hidden.new_full(labels.shape, _LOWEST, dtype=_wide(hidden.dtype))
    total, target, best = torch.zeros_like(peak), torch.zeros_like(peak), torch.zeros_like(labels)
    pulled = (
        hidden.new_zeros(hidden.shape, dtype=peak.dtype) if with_slope else None
    )  # Σ exp(logit − peak) · row
    for block, first in layer.blocks(weight):
        logits = _logits(hidden, weight[block])
        local, mine = _local(labels, first, logits.shape[1])
        target += logits.gather(1, local)[:, 0] * mine[:, 0]
        value, index = logits.max(dim=-1)
        best = torch.where(value > peak, index + first, best)
        higher = torch.maximum(peak, value)
        shrunk = (peak - higher).exp()
        share = logits.sub_(higher[:, None]).exp_()
        total = total * shrunk + share.sum(dim=-1)
        if pulled is not None:
            pulled = pulled.mul_(shrunk[:, None]).add_(share.to(hidden.dtype) @ weight[block])
        peak = higher
    seen = _over_group(peak, total, target, best, layer.group)
    if pulled is None:
        return seen
    return seen._replace(slope=_slope(pulled, (peak - seen.log_sum).exp(), weight, labels, layer))


def _slope(
    pulled: Tensor, scale: Tensor, weight: Tensor, labels: Tensor, layer: _OutputLayer
) -> Tensor:
    """(softmax − one-hot) · weight, over this rank's rows."""
    local, mine = _local(labels, layer.group.rank() * weight.shape[0], weight.shape[0])
    return pulled.mul_(scale[:, None]).sub_(weight[local[:, 0]] * mine)


def _over_group(
    peak: Tensor, total: Tensor, target: Tensor, best: Tensor, group: dist.ProcessGroup
) -> _Seen:
    if group.size() > 1:
        highest = peak.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        best = torch.where(peak == highest, best, torch.iinfo(best.dtype).max)
        dist.all_reduce(best, dist.ReduceOp.MIN, group=group)
        sums = torch.stack([total * (peak - highest).exp(), target])
        dist.all_reduce(sums, group=group)
        peak, (total, target) = highest, sums
    return _Seen(peak + total.log(), target, best)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return linear(hidden, weight).to(_wide(hidden.dtype))


def _local(labels: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns each label's column in a block that starts at id `first` (0 where it is not there),
    and whether it is."""
    local = labels[:, None] - first
    mine = (local >= 0) & (local < size)
    return local.where(mine, 0), mine


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
