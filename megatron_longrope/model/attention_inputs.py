"""What the factors of a batch do to queries, keys and softmax scale, for the kernels of other packages."""

from __future__ import annotations

import math

from torch import Tensor

from megatron_longrope.model.core_attention import ScaleGradient
from megatron_longrope.model.packed import LongRopePackedParams


def factored_inputs(
    query: Tensor, key: Tensor, batch: LongRopePackedParams, *, is_rotated: bool = True
) -> tuple[Tensor, Tensor, float]:
    """Returns query [tokens, heads, head_dim], key and the scale of their product for a kernel without gradient of it.

    A layer that is not rotated has no temperature either: the temperature is RoPE's, multiplied into cos and sin.
    """
    if not is_rotated:
        return query, key, 1 / math.sqrt(query.shape[-1])
    if batch.scale_gradient is not None:
        query = ScaleGradient.apply(query, batch.scale_gradient)
    return query, key, batch.softmax_scale
