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
from megatron_longrope.rope import AnglePrecision, FactorSet, rotary_angles


@dataclass
class LongRopePackedParams(PackedSeqParams):
    """megatron-core's packed-sequence parameters, with ours beside them."""

    rotary_table: Tensor | None = None
    """Angles [total, 1, 1, head_dim] in radians, positions restarting in each document."""
    softmax_scale: float = 1.0
    """t² / √head_dim of the factors in force."""
    document_lengths: tuple[int, ...] = field(default_factory=tuple)
    positions: Tensor | None = None
    """Of each token in its document, int64 [total]."""
    scale_gradient: Tensor | None = None
    """Where a leaf stands here, its gradient becomes s · ∂loss/∂s of the softmax scale s, summed over layers."""


class RotaryFromBatch(nn.Module):
    """Takes the place of megatron-core's rotary embedding: hands out the table that came with the batch."""

    def get_rotary_seq_len(
        self,
        inference_context: object,
        transformer: object,
        transformer_input: object,
        transformer_config: object,
        packed_seq_params: LongRopePackedParams,
    ) -> LongRopePackedParams:
        """megatron-core passes what this returns on to `forward`; a length would not say which factors are meant."""
        return packed_seq_params

    def forward(self, packed: LongRopePackedParams, **_: object) -> Tensor:
        """Returns the batch's angles [total, 1, 1, head_dim]."""
        assert packed.rotary_table is not None
        return packed.rotary_table


def packed_params(
    batch: DocumentBatch,
    factor_set: FactorSet,
    precision: AnglePrecision,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> LongRopePackedParams:
    """Returns the parameters of `batch` under the factors its longest document selects.

    The table is float32 whatever the model's `dtype` is, and float64 for a float64 model.
    """
    factors = factor_set.for_length(batch.longest)
    table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    angles = rotary_angles(batch.positions, factors, precision=precision, dtype=table_dtype)
    table = torch.cat([angles, angles], dim=-1)[:, None, None, :].to(device)
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
        positions=batch.positions,
    )
