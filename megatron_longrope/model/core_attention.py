"""megatron-core's core-attention slot: the batch's rotation, then causal attention within each of its documents."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_longrope.model.context_attention import attend
from megatron_longrope.model.packed import LongRopePackedParams
from megatron_longrope.model.rotary import rotate


class DocumentAttention(nn.Module):
    """Memory linear in the length, grouped K/V heads never copied, sequences spread over the context-parallel group.

    Angles and softmax scale come with each batch, because both halves of the factors change between batches.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        pg_collection: ProcessGroupCollection,
        **_: Any,
    ) -> None:
        super().__init__()
        assert config.attention_dropout == 0.0
        self.group = pg_collection.cp

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
        """Returns [tokens, heads · head_dim] for an unrotated query [tokens, heads, head_dim] and K/V
        [tokens, kv_heads, head_dim]; tokens: this rank's share. In evaluation all three are overwritten.
        """
        packed = packed_seq_params
        assert packed is not None and packed.rotary_table is not None
        assert attention_mask is None and attention_bias is None
        # Not where recomputation runs its first forward pass without autograd: the inputs are needed again.
        overwrite = not self.training and not torch.is_grad_enabled()
        query, key = (rotate(x, packed.rotary_table, overwrite=overwrite) for x in (query, key))
        out = attend(
            query, key, value, document_lengths=packed.document_lengths, scale=packed.softmax_scale, group=self.group,
            exchange=packed.context_exchange, overwrite=overwrite,
        )  # fmt: skip
        return out.flatten(1)
