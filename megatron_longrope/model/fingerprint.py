"""A model's identity in a few characters: other weights or another precision give another one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica

from megatron_longrope.model.checkpoints.checkpoint import sharded_weights
from megatron_longrope.model.longrope_model import LongRopeModel


def model_identity(model: LongRopeModel) -> dict[str, Any]:
    """Returns JSON values that differ between any two models whose scores may differ.

    They are of weights, geometry, dtypes and engine, and the same under every parallel layout. All
    ranks call it together.
    """
    dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
    settings = model.backend.settings
    return {
        "weights": weights_fingerprint(model),
        "geometry": [model.geometry.base, model.geometry.head_dim, model.geometry.original_length],
        "dtypes": sorted({name for names in model.runtime.gather(dtypes) for name in names}),
        "angle_precision": model.angle_precision,
        "engine": model.backend.engine,
        "fp8": [settings.fp8, settings.fp8_attention],
    }


def weights_fingerprint(model: LongRopeModel) -> str:
    """Returns a digest of all weights that is the same under every parallel layout.

    Each weight counts by the sum of its numbers' bit patterns. A sum does not depend on order, and
    so not on how a layout cuts the weight up. Rows that pad the vocabulary do not count.
    """
    sums: dict[str, int] = {}
    state = sharded_weights(model)
    apply_factories(state)
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor) and is_main_replica(shard.replica_id):
            name = f"{shard.key}{list(shard.global_offset[: shard.prepend_axis_num])}"
            sums[name] = sums.get(name, 0) + _sum_of_bits(
                _without_padding(shard, model.shape.vocab_size)
            )
    total: dict[str, int] = {}
    for part in model.runtime.gather(sums):
        for name, bits in part.items():
            total[name] = total.get(name, 0) + bits
    return hashlib.sha256(json.dumps(total, sort_keys=True).encode()).hexdigest()[:16]


def _without_padding(shard: ShardedTensor, vocab_size: int) -> torch.Tensor:
    assert shard.data is not None
    data: torch.Tensor = shard.data.detach()
    # megatron-core marks like this the weights whose rows are the vocabulary, padding included.
    if not shard.allow_shape_mismatch:
        return data
    return data[: max(0, vocab_size - shard.global_offset[shard.prepend_axis_num])]


def _sum_of_bits(numbers: torch.Tensor) -> int:
    return int(numbers.float().contiguous().view(torch.int32).sum(dtype=torch.int64))
