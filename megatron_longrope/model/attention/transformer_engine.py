"""Transformer Engine's attention in megatron-core's slot, under the factors of each batch."""

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
"""The modules inside Transformer Engine's attention; each keeps a softmax scale of its own."""


class TeDocumentAttention(nn.Module):
    """Causal attention within each document, by the kernel that Transformer Engine picks.

    Transformer Engine fixes the softmax scale when the module is built, but the attention factor
    comes with each batch. All three of its kernels read the scale from an attribute at every call
    and keep it for their own backward pass, so it is set there. That is exact. Scaling the query
    instead would round it once more in BF16, and move the maxima that FP8 scales by. Recomputation
    comes through here again with the batch it had, and so with the right scale.

    A single document goes in as a row (sbhd), which every kernel and every kind of communication
    takes; several go in as a pack (thd).
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
        """Takes what megatron-core gives a core attention, and what `te_layer_spec` binds.

        Args:
            config: megatron-core's config of the model.
            layer_number: Number of the layer, from 1.
            attn_mask_type: megatron-core's mask type.
            attention_type: Self- or cross-attention.
            window: Tokens a query reaches back, itself included; None: all.
            is_rotated: Whether RoPE turns this layer's queries and keys.
            fused_rope: Whether Transformer Engine's fused kernel does that.
            build_attention: Stands in for megatron-core's wrapper of Transformer Engine's module.
            megatron: What megatron-core gives its wrapper: kind of communication, process groups.
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
        if window is not None:  # Transformer Engine counts the tokens before the query only
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
        """Returns the output [tokens, heads · head_dim] for this rank's share of the tokens.

        query is [tokens, heads, head_dim] and not rotated yet, K/V are [tokens, kv_heads,
        head_dim]. In evaluation query and key are overwritten.
        """
        batch = packed_seq_params
        assert batch is not None and attention_mask is None and attention_bias is None
        query, key, scale = self._apply_factors(query, key, batch)
        self.set_softmax_scale(scale)
        # Evaluation keeps K/V by head in memory. Transformer Engine does not look at strides: it
        # reads any three tensors of the right shapes as if they were contiguous.
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
        """Returns nothing: attention has no weights, and extra state is not kept in checkpoints."""
        return {}

    def _apply_factors(
        self, query: Tensor, key: Tensor, batch: LongRopePackedParams
    ) -> tuple[Tensor, Tensor, float]:
        """Returns the rotated query and key, and the softmax scale.

        The fused kernel is given an angle for every token of this process. So n̂, the restart at
        each document and the cut by context parallelism are all in the table, and the kernel does
        not need to know of them. It has no gradient by the angles: where that is asked for, our own
        rotation serves.
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

        Padding at a document's end counts as part of the document: under a causal mask no token
        before it sees it. Under context parallelism Transformer Engine wants the boundaries with
        padding as well. Given the same tensor twice it knows that there is no padding in between
        without comparing the numbers, for which the host would wait for the device.
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
    """Returns Transformer Engine's fused rotation.

    It takes x [tokens, 1, heads, head_dim] and angles [tokens, 1, 1, head_dim].
    """
    from megatron.core.extensions.transformer_engine import fused_apply_rotary_pos_emb

    return fused_apply_rotary_pos_emb  # type: ignore[no-any-return]
