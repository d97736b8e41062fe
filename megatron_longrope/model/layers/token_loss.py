"""Cross-entropy per token over a vocabulary-parallel output layer, without whole logits.

At 262144 tokens and a vocabulary of 128256, float32 logits are 134 GB. Here they exist one block at
a time: some tokens × some vocabulary rows of this rank. With hidden state h, output rows w_v and
label y, logits are z_v = h·w_v, and a token's loss is

    nats = log Σ_v exp(z_v) − z_y

Forward: the log-sum-exp is built up block by block with a running maximum m (as in online softmax):
a new maximum m' rescales the sum so far by exp(m − m'). At the end the tensor-parallel ranks, each
with rows of its own, combine their maxima and sums (`_over_group`).

Backward: with p_v = exp(z_v − log-sum-exp) and upstream gradient g of the token,

    ∂/∂h = g · Σ_v (p_v − [v = y]) · w_v        ∂/∂w_v = Σ_tokens g · (p_v − [v = y]) · h

Each block of logits is computed once more and turned into p − one-hot in place, and its two matrix
products are added up.

Where the weight is frozen (`factor_gradient`), Σ_v (p_v − [v = y]) · w_v is built up in the forward
pass beside the log-sum-exp, with the same rescaling, and no logits are computed again: g is one
number per token, by which that token's row is multiplied later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import linear

DEFAULT_CHUNK_TOKENS = 1024
"""Tokens of a block of logits."""
BLOCK_VOCABULARY = 2048
"""Vocabulary rows of a block of logits."""
_LOWEST = -1e30  # not −∞: a rank whose rows are all padding would compute ∞ − ∞ = NaN


def chunked_token_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> Tensor:
    """Returns the loss of each token in nats [total], float32 at least.

    The gradient of `hidden` is this rank's part: the whole is the sum over the group.

    Args:
        hidden: Final hidden states [total, hidden_size], the same on every rank of the group.
        weight: This rank's share of the output layer's rows, [rows, hidden_size].
        labels: Token to predict at each position, int64 [total].
        vocab_size: Size of the vocabulary; rows from there on are padding, without probability.
        group: The tensor-parallel group, over which rows are spread in rank order.
        chunk_tokens: Tokens of a block of logits.
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
    """Returns [2, total]: each token's loss in nats, and whether its label is the arg-max.

    The second row holds 1 where it is and 0 where it is not; ties go to the lowest id. No gradient.

    Args:
        hidden: Final hidden states [total, hidden_size], the same on every rank of the group.
        weight: This rank's share of the output layer's rows, [rows, hidden_size].
        labels: Token to predict at each position, int64 [total].
        vocab_size: Size of the vocabulary; rows from there on are padding, without probability.
        group: The tensor-parallel group, over which rows are spread in rank order.
        chunk_tokens: Tokens of a block of logits.
    """
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
    """Returns the whole logits [total, vocab_size], for comparisons over short inputs only."""
    logits = linear(hidden, weight).to(_wide(hidden.dtype))
    shares = [torch.empty_like(logits) for _ in range(group.size())]
    dist.all_gather(shares, logits.contiguous(), group=group)
    return torch.cat(shares, dim=-1)[:, :vocab_size]


class _OutputLayer(NamedTuple):
    """What is fixed over one call; the weight's rows are spread over `group` in rank order."""

    group: dist.ProcessGroup
    vocab_size: int
    chunk_tokens: int

    def chunks(self, hidden: Tensor) -> Iterator[slice]:
        """Yields the chunks of the tokens."""
        for start in range(0, hidden.shape[0], self.chunk_tokens):
            yield slice(start, start + self.chunk_tokens)

    def blocks(self, weight: Tensor) -> Iterator[tuple[slice, int]]:
        """Yields this rank's rows block by block, and the vocabulary id of each block's first row.

        Padding rows are left out.
        """
        first = self.group.rank() * weight.shape[0]
        rows = min(weight.shape[0], self.vocab_size - first)
        for start in range(0, rows, BLOCK_VOCABULARY):
            yield slice(start, min(start + BLOCK_VOCABULARY, rows)), first + start


class _Seen(NamedTuple):
    """Results of one pass over the vocabulary for a chunk of tokens, each [tokens]."""

    log_sum: Tensor
    """Log-sum-exp of the logits."""
    target: Tensor
    """Logit of the label."""
    best: Tensor
    """The id with the highest logit, the lowest of equals."""
    slope: Tensor | None = None
    """This rank's part of ∂nats/∂hidden, [tokens, hidden_size], where asked for."""


class _TokenLosses(torch.autograd.Function):
    """Losses whose backward pass computes the logits again, or none at all for a frozen weight."""

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
        # Sums over chunks and blocks are float32 at least, whatever the weights are.
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype))
        for rows in layer.chunks(hidden):
            part = hidden.new_zeros(hidden[rows].shape, dtype=_wide(hidden.dtype))
            for block, first in layer.blocks(weight):
                # slope = g · (p − one-hot) of this block, made in place of its logits
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
    """Returns the results of one pass over the vocabulary, over all ranks of the group."""
    # `total` is Σ exp(logit − peak) over this rank's rows so far, `peak` the highest logit so far.
    peak = hidden.new_full(labels.shape, _LOWEST, dtype=_wide(hidden.dtype))
    total, target, best = torch.zeros_like(peak), torch.zeros_like(peak), torch.zeros_like(labels)
    # Σ exp(logit − peak) · row, for the gradient by the hidden states
    pulled = hidden.new_zeros(hidden.shape, dtype=peak.dtype) if with_slope else None
    for block, first in layer.blocks(weight):
        logits = _logits(hidden, weight[block])
        local, mine = _local(labels, first, logits.shape[1])
        target += logits.gather(1, local)[:, 0] * mine[:, 0]
        value, index = logits.max(dim=-1)
        best = torch.where(value > peak, index + first, best)  # `>`: the first of equals stays
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
    """Returns Σ_v (p_v − [v = label]) · w_v over this rank's rows.

    `scale` is exp(peak − log-sum-exp), which turns exp(logit − peak) into probabilities.
    """
    local, mine = _local(labels, layer.group.rank() * weight.shape[0], weight.shape[0])
    return pulled.mul_(scale[:, None]).sub_(weight[local[:, 0]] * mine)


def _over_group(
    peak: Tensor, total: Tensor, target: Tensor, best: Tensor, group: dist.ProcessGroup
) -> _Seen:
    """Returns what all ranks' rows say together.

    With M the highest of the ranks' peaks m_r, the log-sum-exp is M + log Σ_r exp(m_r − M)·total_r.
    The label's logit is on one rank, and 0 on all others.
    """
    if group.size() > 1:
        highest = peak.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        # Ranks below the maximum bow out; of several at it the lowest id wins.
        best = torch.where(peak == highest, best, torch.iinfo(best.dtype).max)
        dist.all_reduce(best, dist.ReduceOp.MIN, group=group)
        sums = torch.stack([total * (peak - highest).exp(), target])
        dist.all_reduce(sums, group=group)
        peak, (total, target) = highest, sums
    return _Seen(peak + total.log(), target, best)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return linear(hidden, weight).to(_wide(hidden.dtype))


def _local(labels: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns each label's column in a block of vocabulary, and whether the label is in the block.

    The block has the `size` ids from `first` on. Both results are [tokens, 1]; the column is 0 for
    a label that is not in the block.
    """
    local = labels[:, None] - first
    mine = (local >= 0) & (local < size)
    return local.where(mine, 0), mine


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
