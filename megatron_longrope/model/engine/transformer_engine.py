"""Layers of Transformer Engine with our attention; importing it needs Transformer Engine."""

from __future__ import annotations

from functools import partial

from megatron.core.extensions.transformer_engine import TENorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_longrope.model.attention.transformer_engine import TeDocumentAttention
from megatron_longrope.model.layers.lean_layer import LeanLayer

FINAL_NORM = TENorm


def te_layer_spec(
    *,
    fused_rope: bool = False,
    is_lean: bool = True,
    qk_norm: bool = False,
    window: int | None = None,
    is_rotated: bool = True,
) -> ModuleSpec:
    """Returns megatron-core's specification of one layer of Transformer Engine.

    Norms are fused into the projections that follow them.

    Args:
        fused_rope: Whether Transformer Engine's kernel rotates queries and keys.
        is_lean: Whether evaluation goes in chunks of tokens. Not with FP8: each chunk would have
            scales of its own, and would have to fill whole blocks.
        qk_norm: Whether each head's query and key are normalized.
        window: Tokens a query reaches back, itself included; None: all.
        is_rotated: Whether RoPE turns this layer's queries and keys.
    """
    spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=qk_norm)
    if is_lean:
        spec.module = LeanLayer
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = partial(
        TeDocumentAttention, window=window, is_rotated=is_rotated, fused_rope=fused_rope
    )
    return spec
