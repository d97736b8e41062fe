"""Operations counted while they are done: torch's counter, taught the CPU's attention kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Size = Sequence[int]


def flop_counter() -> FlopCounterMode:
    """Returns a counter of the matrix products done inside its `with` block, attention included.

    torch counts the shapes that reach its kernels, in backward passes too. The CPU's attention
    kernels it does not know. They are counted as two products forward and five backward, over the
    scores that a causal mask leaves.
    """
    return FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)


def _scores(query: Size, key: Size, is_causal: bool) -> float:
    """Returns the operations of q·kᵀ over the scores of one call, [batch, heads, seq, head_dim]."""
    batch, heads, queries, head_dim = query
    # query i of a causal call sees keys 0 … i
    seen = queries * (queries + 1) / 2 if is_causal else queries * key[2]
    return 2.0 * batch * heads * seen * head_dim


def _forward(
    query: Size, key: Size, value: Size, dropout: float = 0.0, is_causal: bool = False, **_: Any
) -> float:
    return 2 * _scores(query, key, is_causal)


def _backward(
    grad: Size,
    query: Size,
    key: Size,
    value: Size,
    out: Size,
    lse: Size,
    dropout: float,
    is_causal: bool,
    **_: Any,
) -> float:
    return 5 * _scores(query, key, is_causal)


_CPU_ATTENTION: dict[Any, Callable[..., float]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
