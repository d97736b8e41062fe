"""Transformer Engine's attention in megatron-core's core-attention slot, under the factors of each batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_longrope.model.packed import LongRopePackedParams

_KERNELS = ("flash_attention", "fused_attention", "unfused_attention")


class TeDocumentAttention(nn.Module):
    """Causal attention within each document, by the fused kernel that Transformer Engine picks for the batch.

    Transformer Engine fixes the softmax scale when it is built, but the temperature comes with each batch. All three of
    its kernels read the scale from an attribute at every call and keep it for their own backward pass, so it is set
    there: exact, where scaling the query instead would round it once more in BF16 and move the maxima that FP8 scales
    by. A forward pass that is run again for its gradient comes through here too, with the batch it had.

    One document alone goes in as a row (sbhd), which every kernel and kind of communication takes; several go in as a
    pack (thd).
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
        build_attention: Callable[..., nn.Module] | None = None,
        **megatron: Any,
    ) -> None:
        """`window`: tokens a query reaches back, itself included; `is_rotated`: whether RoPE turned this layer's.

        `megatron` is what megatron-core gives its own wrapper: communication, process groups. That wrapper is what
        `build_attention` makes unless told otherwise.
        """
        super().__init__()
        assert config.attention_dropout == 0.0
        self.head_dim, self.is_rotated = config.kv_channels, is_rotated
        self.context_parallel = config.context_parallel_size
        build_attention = build_attention or _megatron_attention()
        self.attention = build_attention(config=config, layer_number=layer_number, attn_mask_type=attn_mask_type,
                                         attention_type=attention_type, **megatron)  # fmt: skip
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
        """Returns [tokens, 1, heads · head_dim] for a query [tokens, 1, heads, head_dim], key and value alike.

        `tokens` are this process's share of the batch.
        """
        batch = packed_seq_params
        assert batch is not None and attention_mask is None and attention_bias is None
        assert query.dim() == 4 and query.shape[1] == 1
        self.set_softmax_scale(batch.softmax_scale if self.is_rotated else 1 / math.sqrt(self.head_dim))
        if len(batch.document_lengths) == 1:
            out = self.attention(query, key, value, None, attn_mask_type=AttnMaskType.causal, packed_seq_params=None)
        else:
            out = self.attention(query[:, 0], key[:, 0], value[:, 0], None, attn_mask_type=AttnMaskType.causal,
                                 packed_seq_params=self._pack(batch))  # fmt: skip
        return out.reshape(query.shape[0], 1, -1)

    def set_softmax_scale(self, scale: float) -> None:
        """Puts `scale` in force for the next call, whichever kernel serves it."""
        for name in _KERNELS:
            getattr(self.attention, name).softmax_scale = scale

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing of attention is kept in checkpoints."""
        return {}

    def _pack(self, batch: LongRopePackedParams) -> PackedSeqParams:
        """The boundaries of the whole batch. Padding at a document's end counts as part of it: nothing before it looks
        there. Under context parallelism the padded boundaries must be given; they are the same tensor, so that telling
        them apart costs no wait for the device."""
        padded = batch.cu_seqlens_q if self.context_parallel > 1 else None
        return PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=batch.cu_seqlens_q, cu_seqlens_kv=batch.cu_seqlens_q,
            cu_seqlens_q_padded=padded, cu_seqlens_kv_padded=padded,
            max_seqlen_q=batch.max_seqlen_q, max_seqlen_kv=batch.max_seqlen_q,
        )  # fmt: skip


class RowSelfAttention(SelfAttention):
    """Self-attention to which a batch is one row [tokens, 1, …]; its documents are known to the core attention alone.

    The rotary table has an angle for every token of this process, n̂ and the restart at each document included. Told of
    packed documents, megatron-core would cut the table by document instead, waiting for the device in every layer, and
    its fused kernel would read the first document's rows for all of them.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, *args: Any,
        packed_seq_params: LongRopePackedParams, **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Returns attention's output [tokens, 1, hidden_size] and its bias."""
        row = dataclasses.replace(packed_seq_params, qkv_format="sbhd")
        result: tuple[Tensor, Tensor] = super().forward(hidden_states, attention_mask, *args, packed_seq_params=row,
                                                        **kwargs)  # fmt: skip
        return result


def _megatron_attention() -> Callable[..., nn.Module]:
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    return TEDotProductAttention  # type: ignore[no-any-return]
