"""Causal attention within each document of a packed batch, on torch's fused kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from megatron_longrope.model.packed import LongRopePackedParams
from megatron_longrope.model.sliding_window import windowed_attention


class ScaleGradient(torch.autograd.Function):
    """Hands the query on as it is; on the way back gives the leaf Σ q · ∂loss/∂q, which is s · ∂loss/∂s."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, leaf: Tensor) -> Tensor:
        ctx.save_for_backward(query)
        return query.view_as(query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (query,), (gradient,) = ctx.saved_tensors, gradients
        return gradient, torch.linalg.vecdot(query.flatten(1).double(), gradient.flatten(1).double()).sum()


class DocumentAttention(nn.Module):
    """megatron-core's core-attention slot: memory linear in the length, grouped K/V heads never copied.

    The softmax scale comes with each batch because the attention temperature is part of the factors.
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
        **_: Any,
    ) -> None:
        """`window`: tokens a query reaches back, itself included; `is_rotated`: whether RoPE turned this layer's."""
        super().__init__()
        self.window, self.is_rotated = window, is_rotated
        assert config.attention_dropout == 0.0 and config.context_parallel_size == 1

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
        """Returns [total, heads · head_dim] for a query [total, heads, head_dim] and [total, kv_heads, head_dim]."""
        assert packed_seq_params is not None and attention_mask is None and attention_bias is None
        # The temperature is RoPE's: transformers multiplies it into cos and sin, which a layer without RoPE has not.
        scale = 1 / math.sqrt(query.shape[-1])
        if self.is_rotated:
            scale = packed_seq_params.softmax_scale
            if packed_seq_params.scale_gradient is not None:
                query = ScaleGradient.apply(query, packed_seq_params.scale_gradient)
        parts = [
            _attend(query[run], key[run], value[run], length, scale, self.window)
            for run, length in _runs(packed_seq_params.document_lengths)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _runs(lengths: tuple[int, ...]) -> Iterator[tuple[slice, int]]:
    """Yields neighbouring documents of one length as one slice: they share a kernel call."""
    start = 0
    for length, group in groupby(lengths):
        stop = start + length * len(list(group))
        yield slice(start, stop), length
        start = stop


def _attend(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float, window: int | None) -> Tensor:
    """Causal attention over rows of `length` tokens laid end to end."""

    def rows(x: Tensor) -> Tensor:
        return x.reshape(-1, length, x.shape[-2], x.shape[-1]).transpose(1, 2)

    if window is not None and window < length:
        out = windowed_attention(rows(query), rows(key), rows(value), window=window, scale=scale)
    else:
        grouped = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(rows(query), rows(key), rows(value), is_causal=True, scale=scale,
                                           enable_gqa=grouped)  # fmt: skip
    return out.transpose(1, 2).reshape(query.shape[0], -1)
