"""Attention by the flash-attn package, for GPUs without Transformer Engine.

It takes whole sequences only: no context parallelism.
"""

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
    """Causal attention in one call of the flash-attn kernel for all documents of a batch.

    It stands in megatron-core's core-attention slot. K/V of grouped heads are never copied.
    """

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
        """Takes what megatron-core gives a core attention, and what `block_spec` binds.

        Args:
            config: megatron-core's config of the model.
            layer_number: Number of the layer; unused.
            attn_mask_type: megatron-core's mask; unused, attention is always causal.
            attention_type: Self- or cross-attention; unused.
            window: Tokens a query reaches back, itself included; None: all.
            is_rotated: Whether RoPE turns this layer's queries and keys.
            kernel: Stands in for `flash_attn_varlen_func`.
        """
        super().__init__()
        assert config.attention_dropout == 0.0 and config.context_parallel_size == 1
        self.kernel = kernel or _varlen_kernel()
        # flash-attn counts the tokens before the query, without the query itself.
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
        """Returns the output [tokens, heads · head_dim].

        query is [tokens, heads, head_dim] and not rotated yet, K/V are [tokens, kv_heads,
        head_dim]. In evaluation query and key are overwritten.
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
