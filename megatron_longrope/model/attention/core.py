"""The attention of the `torch` engine: the batch's rotation, then causal attention per document.

It stands in megatron-core's core-attention slot. megatron-core's own module there holds S×S scores
and refuses both context parallelism and packed documents.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_longrope.model.attention.context_parallel import attend
from megatron_longrope.model.attention.packed import LongRopePackedParams
from megatron_longrope.model.attention.sliding_window import windowed_documents
from megatron_longrope.model.rotary import rotate


class ScaleGradient(torch.autograd.Function):
    """Returns the query unchanged; backward, it gives the leaf the gradient s · ∂loss/∂s.

    The loss depends on the query q and the softmax scale s only through s·q·kᵀ, so scaling either
    of them has the same effect: Σ q · ∂loss/∂q = s · ∂loss/∂s (summed over tokens, heads and dims).
    The right side is thus read off the query's own gradient, and no kernel has to differentiate s.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, leaf: Tensor) -> Tensor:
        ctx.save_for_backward(query)
        return query.view_as(query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (query,), (gradient,) = ctx.saved_tensors, gradients
        return gradient, torch.linalg.vecdot(
            query.flatten(1).double(), gradient.flatten(1).double()
        ).sum()


class DocumentAttention(nn.Module):
    """Causal attention within documents, spread over the context-parallel group.

    Memory is linear in the length, and K/V of grouped heads are never copied. Angles and softmax
    scale come with each batch (`LongRopePackedParams`), since factors may change between batches.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        pg_collection: ProcessGroupCollection,
        window: int | None = None,
        is_rotated: bool = True,
        **_: Any,
    ) -> None:
        """Takes what megatron-core gives a core attention, and what `block_spec` binds.

        Args:
            config: megatron-core's config of the model.
            layer_number: Number of the layer; unused.
            attn_mask_type: megatron-core's mask; unused, attention is always causal.
            attention_type: Self- or cross-attention; unused.
            pg_collection: Process groups; `cp` is the one the sequence is spread over.
            window: Tokens a query reaches back, itself included; None: all.
            is_rotated: Whether RoPE turns this layer's queries and keys.
        """
        super().__init__()
        assert config.attention_dropout == 0.0
        self.group, self.window, self.is_rotated = pg_collection.cp, window, is_rotated
        assert window is None or self.group.size() == 1

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
        head_dim]. In evaluation all three are overwritten.
        """
        packed = packed_seq_params
        assert packed is not None and attention_mask is None and attention_bias is None
        # Autograd off alone does not mean evaluation: under recomputation training's first forward
        # pass runs without it too, and its inputs are needed again for the second one.
        overwrite = not self.training and not torch.is_grad_enabled()
        scale = 1 / math.sqrt(query.shape[-1])
        if self.is_rotated:
            query, key, scale = apply_factors(query, key, packed, overwrite=overwrite)
        if self.window is not None and self.window < max(packed.document_lengths):
            return windowed_documents(
                query, key, value, packed.document_lengths, window=self.window, scale=scale
            )
        out = attend(
            query,
            key,
            value,
            document_lengths=packed.document_lengths,
            scale=scale,
            group=self.group,
            exchange=packed.context_exchange,
            overwrite=overwrite,
        )
        return out.flatten(1)


def apply_factors(
    query: Tensor, key: Tensor, packed: LongRopePackedParams, *, overwrite: bool = False
) -> tuple[Tensor, Tensor, float]:
    """Returns the rotated query and key [tokens, heads, head_dim] and the softmax scale t²/√d.

    Every engine's core attention calls it. Layers without RoPE do not: t is part of RoPE (it
    multiplies cos and sin), so they use 1/√d.
    """
    assert packed.rotary_table is not None
    query, key = (rotate(x, packed.rotary_table, overwrite=overwrite) for x in (query, key))
    if packed.scale_gradient is not None:
        query = ScaleGradient.apply(query, packed.scale_gradient)  # type: ignore[no-untyped-call]
    return query, key, packed.softmax_scale
