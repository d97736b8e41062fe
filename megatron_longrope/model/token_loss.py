"""Per-token negative log-likelihood in sequence chunks over a vocabulary-parallel output layer."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

DEFAULT_CHUNK_TOKENS = 1024
_MASKED = -1e30  # finite, so that a rank whose rows are all padding stays free of NaN


def token_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int, group: dist.ProcessGroup,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> Tensor:  # fmt: skip
    """Returns nats [total] of `labels` [total] under hidden [total, hidden_size] · weightᵀ.

    `weight` is this rank's share of the output layer's rows; rows from `vocab_size` on are padding and get no
    probability. Logits exist for one chunk at a time, in the backward pass too.
    """
    losses = []
    for part, targets in zip(hidden.split(chunk_tokens), labels.split(chunk_tokens), strict=True):
        if torch.is_grad_enabled() and hidden.shape[0] > chunk_tokens:
            losses.append(checkpoint(_chunk_losses, part, weight, targets, vocab_size, group, use_reentrant=False))
        else:
            losses.append(_chunk_losses(part, weight, targets, vocab_size, group))
    return torch.cat(losses)


@torch.no_grad()
def scored_tokens(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int, group: dist.ProcessGroup,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> Tensor:  # fmt: skip
    """Returns [2, total]: nats of each label, and 1 where it is the arg-max (ties go to the lowest id), else 0."""
    losses, hits = [], []
    for part, targets in zip(hidden.split(chunk_tokens), labels.split(chunk_tokens), strict=True):
        logits, first = _local_logits(part, weight, vocab_size, group)
        losses.append(_losses_of(logits, targets, first, group))
        hits.append((_arg_max(logits, first, group) == targets).to(losses[-1].dtype))
    return torch.stack([torch.cat(losses), torch.cat(hits)])


@torch.no_grad()
def full_logits(hidden: Tensor, weight: Tensor, *, vocab_size: int, group: dist.ProcessGroup) -> Tensor:
    """Returns the whole logits [total, vocab_size]: for comparisons over short inputs only."""
    logits, _ = _local_logits(hidden, weight, vocab_size, group)
    shares = [torch.empty_like(logits) for _ in range(group.size())]
    dist.all_gather(shares, logits.contiguous(), group=group)
    return torch.cat(shares, dim=-1)[:, :vocab_size]


def _chunk_losses(hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup) -> Tensor:
    logits, first = _local_logits(hidden, weight, vocab_size, group)
    return _losses_of(logits, labels, first, group)


def _local_logits(hidden: Tensor, weight: Tensor, vocab_size: int, group: dist.ProcessGroup) -> tuple[Tensor, int]:
    """Returns this rank's logits, float32 at least, padding masked; and the vocabulary id of its first row."""
    first = group.rank() * weight.shape[0]
    logits = linear(hidden, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    real_rows = vocab_size - first
    if real_rows < weight.shape[0]:
        padding = torch.arange(weight.shape[0], device=weight.device) >= real_rows
        logits = logits.masked_fill(padding, _MASKED)
    return logits, first


def _losses_of(logits: Tensor, labels: Tensor, first: int, group: dist.ProcessGroup) -> Tensor:
    """log Σ exp(logits) − logits[label], each sum taken over the vocabulary shares."""
    peak = logits.detach().amax(dim=-1)
    if group.size() > 1:
        dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
    shifted = logits - peak[:, None]
    total = reduce_from_tensor_model_parallel_region(shifted.exp().sum(dim=-1), group=group)
    local = labels - first
    mine = (local >= 0) & (local < logits.shape[1])
    picked = shifted.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    target = reduce_from_tensor_model_parallel_region(torch.where(mine, picked, 0.0), group=group)
    return total.log() - target


def _arg_max(logits: Tensor, first: int, group: dist.ProcessGroup) -> Tensor:
    local = logits.argmax(dim=-1)  # the lowest index where values are equal
    where = local + first
    if group.size() == 1:
        return where
    peak = logits.gather(1, local[:, None])[:, 0]
    highest = peak.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    where = torch.where(peak == highest, where, torch.iinfo(where.dtype).max)
    dist.all_reduce(where, dist.ReduceOp.MIN, group=group)
    return where
