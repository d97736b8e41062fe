"""Transformer Engine's attention in megatron-core's core-attention slot, under the factors of each
batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_longrope.model.attention.core import apply_factors
from megatron_longrope.model.attention.packed import LongRopePackedParams

_KERNELS = ("flash_attention", "fused_attention", "unfused_attention")


class TeDocumentAttention(nn.Module):
    """Causal attention within each document, by the fused kernel that Transformer Engine picks for
    the batch.

    Transformer Engine fixes the softmax scale when it is built, but the temperature comes with each
    batch. All three of its kernels read the scale from an attribute at every call and keep it for
    their own backward pass, so it is set there: exact, where scaling the query instead would round
    it once more in BF16 and move the maxima that FP8 scales by. A forward pass that is run again
    for its gradient comes through here too, with the batch it had.

    One document alone goes in as a row (sbhd), which every kernel and kind of communication takes;
    several go in as a pack (thd).
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
        fused_rope: bool = False,
        build_attention: Callable[..., Any] | None = None,
        **megatron: Any,
    ) -> None:
        """`window`: tokens a query reaches back, itself included; `is_rotated`: whether RoPE turns
        this layer's queries and keys; `fused_rope`: in Transformer Engine's kernel.

        `megatron` is what megatron-core gives its own wrapper: communication, process groups. That
        wrapper is what `build_attention` makes unless told otherwise.
        """
        super().__init__()
        assert config.attention_dropout == 0.0
        self.is_rotated, self.context_parallel = is_rotated, config.context_parallel_size
        self.rotate = _fused_rotation() if fused_rope else None
        build_attention = build_attention or _megatron_attention()
        self.attention = build_attention(
            config=config,
            layer_number=layer_number,
            attn_mask_type=attn_mask_type,
            attention_type=attention_type,
            **megatron,
        )
        if window is not None:
            self.attention.window_size = (window - 1, 0)

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
        K/V [tokens, kv_heads, head_dim]; tokens: this rank's share. In evaluation query and key are
        overwritten.
        """
        batch = packed_seq_params
        assert batch is not None and attention_mask is None and attention_bias is None
        query, key, scale = self._apply_factors(query, key, batch)
        self.set_softmax_scale(scale)
        # Of keys and values that lie by head in memory, as evaluation keeps them, Transformer
        # Engine sees neither that nor the strides: it takes any three tensors of the right shapes
        # for contiguous ones.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        if len(batch.document_lengths) == 1:
            tensors, pack = (query[:, None], key[:, None], value[:, None]), None
        else:
            tensors, pack = (query, key, value), self._pack(batch)
        out: Tensor = self.attention(
            *tensors, None, attn_mask_type=AttnMaskType.causal, packed_seq_params=pack
        )
        return out.reshape(query.shape[0], -1)

    def set_softmax_scale(self, scale: float) -> None:
        """Puts `scale` in force for the next call, whichever kernel serves it."""
        for name in _KERNELS:
            getattr(self.attention, name).softmax_scale = scale

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing of attention is kept in checkpoints."""
        return {}

    def _apply_factors(
        self, query: Tensor, key: Tensor, batch: LongRopePackedParams
    ) -> tuple[Tensor, Tensor, float]:
        """Returns query and key turned by the batch's angles, and the scale of their product.

        The fused kernel takes our table row by row, an angle for every token of this process: so
        n̂, the restart at each document and the cut by context parallelism are all in it. It gives
        no gradient of the angles.
        """
        if not self.is_rotated:
            return query, key, 1 / math.sqrt(query.shape[-1])
        if self.rotate is None or batch.scale_gradient is not None:
            overwrite = not self.training and not torch.is_grad_enabled()
            return apply_factors(query, key, batch, overwrite=overwrite)
        assert batch.rotary_table is not None
        angles = torch.cat([batch.rotary_table] * 2, dim=-1)[:, None, None]
        query, key = (self.rotate(x[:, None], angles)[:, 0] for x in (query, key))
        return query, key, batch.softmax_scale

    def _pack(self, batch: LongRopePackedParams) -> PackedSeqParams:
        """Returns the boundaries of the whole batch, all context-parallel shares together.

        Padding at a document's end counts as part of it: nothing before it looks there. Under
        context parallelism Transformer Engine wants the padded boundaries named; given the same
        tensor, it finds no padding in between without waiting for the device.
        """
        padded = batch.cu_seqlens_q if self.context_parallel > 1 else None
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens_q,
            cu_seqlens_kv=batch.cu_seqlens_q,
            cu_seqlens_q_padded=padded,
            cu_seqlens_kv_padded=padded,
            max_seqlen_q=batch.max_seqlen_q,
            max_seqlen_kv=batch.max_seqlen_q,
        )


def _megatron_attention() -> Callable[..., Any]:
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    return TEDotProductAttention  # type: ignore[no-any-return]


def _fused_rotation() -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the function of x [tokens, 1, heads, head_dim] and angles [tokens, 1, 1,
    head_dim]."""
    from megatron.core.extensions.transformer_engine import fused_apply_rotary_pos_emb

    return fused_apply_rotary_pos_emb  # type: ignore[no-any-return]
