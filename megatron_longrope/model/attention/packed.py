"""What travels through the model with a packed batch: boundaries, rotary angles, softmax scale.

Angles and attention factor are data of the batch here, not state of a module. megatron-core's
`RotaryEmbedding.forward` is cached (`lru_cache`), so changing its frequencies in place would go on
returning the old table: every candidate of a search would get the same score. With the batch, a
change of factors takes effect at once, and recomputation in the backward pass sees the factors that
its forward pass saw. A table over positions can also express n̂, which a change of frequencies
cannot.
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
    """The packed-sequence parameters of megatron-core, with ours beside them."""

    rotary_table: Tensor | None = None
    """Angles [tokens, head_dim/2] in radians of this rank's tokens; positions restart in each
    document."""
    softmax_scale: float = 1.0
    """Softmax scale t²/√head_dim of the factors in force.

    t multiplies cos and sin of q and k alike, so q·k by t². In the scale it costs nothing and works
    with every kernel. Equal because all dims of a head are rotated.
    """
    document_lengths: tuple[int, ...] = field(default_factory=tuple)
    """Tokens of each document, padding included, before any cut by context parallelism."""
    positions: Tensor | None = None
    """Position of each of this rank's tokens in its document, int64 [tokens]."""
    scale_gradient: Tensor | None = None
    """A leaf whose gradient becomes s · ∂loss/∂s of the softmax scale s, summed over layers.

    None: nobody asks for that gradient.
    """
    context_exchange: ExchangeKind = "ring"
    """How K/V travel between context-parallel ranks."""


class NoRotary(nn.Module):
    """Takes the place of megatron-core's rotary embedding and rotates nothing.

    The core attention rotates by the batch's own table instead. megatron-core's embedding would
    make a table of the whole sequence on every rank, and its rotation makes six copies of q and k.
    """

    def get_rotary_seq_len(self, *_: object) -> int:
        """Returns a length that megatron-core only passes on to `forward`."""
        return 0

    def forward(self, length: int, **_: object) -> None:
        """Returns no table, so that megatron-core rotates nothing."""


def packed_params(
    batch: DocumentBatch,
    factor_set: FactorSet,
    precision: AnglePrecision,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> LongRopePackedParams:
    """Returns the parameters of a batch under the factors that its longest document selects.

    Args:
        batch: A whole batch, or this rank's share of one.
        factor_set: The factors in force, by input length.
        precision: How the angles are computed (`rotary_angles`).
        device: Where the table is wanted.
        dtype: The model's; the table is float64 for a float64 model and float32 for all others.
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
