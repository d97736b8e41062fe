"""Stand-ins for kernels of Transformer Engine and flash-attn, with their signatures, in float64.

tests/unit/model/test_te_signatures.py holds the signatures against the real ones where Transformer
Engine is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn


def exact_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int], scale: float, left: int = -1
) -> Tensor:
    """Returns causal attention within each document, computed in float64.

    Args:
        query: [tokens, heads, head_dim], like key and value (these with fewer heads).
        key: keys of all documents, end to end.
        value: values of all documents, end to end.
        bounds: first token of every document, then the number of tokens.
        scale: factor of q·k.
        left: tokens before a query that it attends to; −1 for all.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        q, k, v = (x[start:stop].double().transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        seen = (distance >= 0) & ((distance <= left) if left >= 0 else True)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts).to(query.dtype)


class _Kernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.softmax_scale = float("nan")  # results are NaN where nobody sets it


class FakeTeAttention(nn.Module):
    """Stand-in for megatron-core's TEDotProductAttention that keeps its last call's arguments."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
        num_splits: int | None = None,
        cp_comm_type: str | None = "p2p",
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        self.flash_attention, self.fused_attention, self.unfused_attention = (
            _Kernel(),
            _Kernel(),
            _Kernel(),
        )
        self.window_size: tuple[int, int] = (-1, 0)
        self.cp_comm_type = cp_comm_type
        self.last_call: tuple[Tensor, PackedSeqParams | None] | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        num_splits: int | None = None,
    ) -> Tensor:
        """Returns attention in the layout of the query, as Transformer Engine does.

        With boundaries (packed_seq_params) the layout is thd, [tokens, heads, head_dim]; without it
        is sbhd, [tokens, 1, heads, head_dim].
        """
        assert attention_mask is None and attn_mask_type == AttnMaskType.causal
        self.last_call = query, packed_seq_params
        # the real kernels do not look at strides
        assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
        scale, left = self.fused_attention.softmax_scale, self.window_size[0]
        assert scale == self.flash_attention.softmax_scale == self.unfused_attention.softmax_scale
        if packed_seq_params is None:
            rows, one, *_ = query.shape
            assert one == 1 and query.dim() == 4
            out = exact_attention(query[:, 0], key[:, 0], value[:, 0], (0, rows), scale, left)
            return out.reshape(rows, 1, -1)
        assert query.dim() == 3 and packed_seq_params.qkv_format == "thd"
        assert packed_seq_params.cu_seqlens_q.dtype == torch.int32
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        return exact_attention(query, key, value, bounds, scale, left).flatten(1)


def fake_flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Stands in for flash_attn.flash_attn_varlen_func, with its signature of 2.7.0 and 2.8.3."""
    assert causal and softmax_scale is not None and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k == int((cu_seqlens_q[1:] - cu_seqlens_q[:-1]).max())
    assert (
        all(x.dim() == 3 and x.stride(-1) == 1 for x in (q, k, v))
        and cu_seqlens_q.dtype == torch.int32
    )
    return exact_attention(q, k, v, cu_seqlens_q.tolist(), softmax_scale, window_size[0])
