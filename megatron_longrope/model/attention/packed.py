"""What travels with one packed batch through the model: document boundaries, rotary angles, softmax
scale.

Both halves of a factor set — angles and temperature — ride with the data instead of living in
modules. So a change of factors takes effect with the next batch, no cache can outlive it, and
recomputation in the backward pass sees the factors its own forward pass saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.model.attention.context_exchange import ExchangeKind
from megatron_longrope.rope import AnglePrecision, FactorSet, rotary_angles


@dataclass
class LongRopePackedParams(PackedSeqParams):
    """megatron-core's packed-sequence parameters, with ours beside them."""

    rotary_table: Tensor | None = None
    """Angles [tokens, head_dim/2] in radians of this rank's share, positions restarting in each
    document."""
    softmax_scale: float = 1.0
    """t² / √head_dim of the factors in force."""
    document_lengths: tuple[int, ...] = field(default_factory=tuple)
    """Tokens of each document, padding included, before any cut by context parallelism."""
    positions: Tensor | None = None
    """Of each token of the share in its document, int64 [tokens]."""
    scale_gradient: Tensor | None = None
    """Where a leaf stands here, its gradient becomes s · ∂loss/∂s of the softmax scale s, summed
    over layers."""
    context_exchange: ExchangeKind = "ring"
    """How K/V travel between context-parallel ranks."""


class NoRotary(nn.Module):
    """Takes the place of megatron-core's rotary embedding: the core attention turns by the batch's
    own table.

    megatron-core would want a table of the whole sequence on every rank, and turns q and k with six
    copies of each.
    """

    def get_rotary_seq_len(self, *_: object) -> int:
        """megatron-core passes what this returns on to `forward`."""
        return 0

    def forward(self, length: int, **_: object) -> None:
        """Returns no table, so that megatron-core turns nothing."""


def packed_params(
    batch: DocumentBatch,
    factor_set: FactorSet,
    precision: AnglePrecision,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> LongRopePackedParams:
    """Returns the parameters of `batch`, whole or a share, under the factors its longest document
    selects.

    The table is float32 whatever the model's `dtype` is, and float64 for a float64 model.
    """
    factors = factor_set.for_length(batch.longest)
    table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    table = rotary_angles(batch.positions, factors, precision=precision, dtype=table_dtype)
    boundaries = batch.cu_seqlens.to(device)
    lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).tolist()
    return LongRopePackedParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=batch.max_length,
        max_seqlen_kv=batch.max_length,
        rotary_table=table.to(device),
        softmax_scale=factors.attention_factor**2 / math.sqrt(factors.head_dim),
        document_lengths=tuple(int(length) for length in lengths),
        positions=batch.positions,
    )
