"""Attention by the flash-attn package, for GPUs without Transformer Engine and without context
parallelism."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_longrope.model.attention.core import apply_factors
from megatron_longrope.model.attention.packed import LongRopePackedParams


class FlashDocumentAttention(nn.Module):
    """megatron-core's core-attention slot: one kernel call for all documents of a batch, K/V heads
    never copied."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        window: int | None = None,
        is_rotated: bool = True,
        kernel: Callable[..., Tensor] | None = None,
        **_: Any,
    ) -> None:
        """`window`: tokens a query reaches back, itself included; `is_rotated`: whether RoPE turns
        this layer's queries and keys; `kernel`: flash_attn_varlen_func unless told otherwise.
        """
        super().__init__()
        assert config.attention_dropout == 0.0 and config.context_parallel_size == 1
        self.kernel = kernel or _varlen_kernel()
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
        """Returns [tokens, heads · head_dim] for an unrotated query [tokens, heads, head_dim] and
        K/V [tokens, kv_heads, head_dim]. In evaluation query and key are overwritten.
        """
        batch = packed_seq_params
        assert batch is not None and attention_mask is None and attention_bias is None
        scale = 1 / math.sqrt(query.shape[-1])
        if self.is_rotated:
            overwrite = not self.training and not torch.is_grad_enabled()
            query, key, scale = apply_factors(query, key, batch, overwrite=overwrite)
        boundaries, longest = batch.cu_seqlens_q, batch.max_seqlen_q
        out = self.kernel(
            query,
            key,
            value,
            boundaries,
            boundaries,
            longest,
            longest,
            softmax_scale=scale,
            causal=True,
            window_size=self.window_size,
        )
        return out.flatten(1)


def _varlen_kernel() -> Callable[..., Tensor]:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func  # type: ignore[no-any-return]
