"""megatron-core's core-attention slot: the batch's rotation, then causal attention within each of
its documents."""

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
    """Hands the query on as it is; on the way back gives the leaf Σ q · ∂loss/∂q, which is s ·
    ∂loss/∂s."""

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
    """Memory linear in the length, grouped K/V heads never copied, sequences spread over the
    context-parallel group.

    Angles and softmax scale come with each batch, because both halves of the factors change between
    batches.
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
        """`window`: tokens a query reaches back, itself included; `is_rotated`: whether RoPE turns
        this layer's."""
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
        """Returns [tokens, heads · head_dim] for an unrotated query [tokens, heads, head_dim] and
        K/V [tokens, kv_heads, head_dim]; tokens: this rank's share. In evaluation all three are
        overwritten.
        """
        packed = packed_seq_params
        assert packed is not None and attention_mask is None and attention_bias is None
        # Not where recomputation runs its first forward pass without autograd: the inputs are
        # needed again.
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
    """Returns query and key [tokens, heads, head_dim] turned by the batch's angles, and the scale
    of their product.

    For every engine's core attention alike. A layer that is not rotated does without: the
    temperature is RoPE's.
    """
    assert packed.rotary_table is not None
    query, key = (rotate(x, packed.rotary_table, overwrite=overwrite) for x in (query, key))
    if packed.scale_gradient is not None:
        query = ScaleGradient.apply(query, packed.scale_gradient)  # type: ignore[no-untyped-call]
    return query, key, packed.softmax_scale
