"""Attention by the flash-attn package, for GPUs without Transformer Engine and without context parallelism."""

from __future__ import annotations

import math
from typing import Any

from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_longrope.model.packed import LongRopePackedParams


class FlashDocumentAttention(nn.Module):
    """megatron-core's core-attention slot: one kernel call for all documents of a batch, K/V heads never copied."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        window: int | None = None,
        is_rotated: bool = True,
        **_: Any,
    ) -> None:
        """`window`: tokens a query reaches back, itself included; `is_rotated`: whether RoPE turned this layer's."""
        super().__init__()
        assert config.attention_dropout == 0.0 and config.context_parallel_size == 1
        from flash_attn import flash_attn_varlen_func

        self.kernel = flash_attn_varlen_func
        self.window_size = (-1, -1) if window is None else (window - 1, 0)
        self.is_rotated = is_rotated

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: LongRopePackedParams | None = None,
    ) -> Tensor:
        """Returns [tokens, heads · head_dim] for a query [tokens, heads, head_dim] and [tokens, kv_heads, head_dim].

        Given rows [tokens, 1, heads, head_dim], it returns [tokens, 1, heads · head_dim].
        """
        batch = packed_seq_params
        assert batch is not None and attention_mask is None and attention_bias is None
        head_dim = query.shape[-1]
        out = self.kernel(
            query.reshape(-1, *query.shape[-2:]),
            key.reshape(-1, *key.shape[-2:]),
            value.reshape(-1, *value.shape[-2:]),
            batch.cu_seqlens_q,
            batch.cu_seqlens_q,
            batch.max_seqlen_q,
            batch.max_seqlen_q,
            softmax_scale=batch.softmax_scale if self.is_rotated else 1 / math.sqrt(head_dim),
            causal=True,
            window_size=self.window_size,
        )
        return out.reshape(*query.shape[:-2], -1)
