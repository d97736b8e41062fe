"""What travels with one packed batch through the model: document boundaries, rotary angles, softmax scale.

Both halves of a factor set — angles and temperature — ride with the data instead of living in modules. So a change
of factors takes effect with the next batch, no cache can outlive it, and recomputation in the backward pass sees the
factors its own forward pass saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.model.context_exchange import ExchangeKind
from megatron_longrope.rope import AnglePrecision, FactorSet, rotary_angles


@dataclass
class LongRopePackedParams(PackedSeqParams):
    """megatron-core's packed-sequence parameters, with ours beside them."""

    rotary_table: Tensor | None = None
    """Angles [tokens, head_dim/2] in radians of this rank's share, positions restarting in each document."""
    softmax_scale: float | Tensor = 1.0
    """t² / √head_dim of the factors in force; a tensor [] where its gradient is wanted."""
    document_lengths: tuple[int, ...] = field(default_factory=tuple)
    """Tokens of each document, padding included, before any cut by context parallelism."""
    context_exchange: ExchangeKind = "ring"
    """How K/V travel between context-parallel ranks."""


class NoRotary(nn.Module):
    """Takes the place of megatron-core's rotary embedding: the core attention turns by the batch's own table.

    megatron-core would want a table of the whole sequence on every rank, and turns q and k with six copies of each.
    """

    def get_rotary_seq_len(self, *_: object) -> int:
        """megatron-core passes what this returns on to `forward`."""
        return 0

    def forward(self, length: int, **_: object) -> None:
        """Returns no table, so that megatron-core turns nothing."""


def packed_params(
    batch: DocumentBatch, factor_set: FactorSet, precision: AnglePrecision, device: torch.device
) -> LongRopePackedParams:
    """Returns the parameters of `batch`, whole or a share, under the factors its longest document selects."""
    factors = factor_set.for_length(batch.longest)
    table = rotary_angles(batch.positions, factors, precision=precision).to(device)
    boundaries = batch.cu_seqlens.to(device)
    lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).tolist()
    return LongRopePackedParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=batch.max_length,
        max_seqlen_kv=batch.max_length,
        rotary_table=table,
        softmax_scale=factors.attention_factor**2 / math.sqrt(factors.head_dim),
        document_lengths=tuple(int(length) for length in lengths),
    )
