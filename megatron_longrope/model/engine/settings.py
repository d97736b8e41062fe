"""What may be asked of the engine, and all that decides whether it can be built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from megatron_longrope.config import StrictConfig
from megatron_longrope.model.shape import ModelShape
from megatron_longrope.runtime import ParallelLayout
from megatron_longrope.runtime.gpu_stack import Engine

EngineName = Literal["auto", "transformer-engine", "flash-attn", "torch"]
Communication = Literal["auto", "p2p", "all_gather", "a2a", "a2a+p2p"]
Fp8Recipe = Literal["off", "delayed", "tensorwise", "blockwise", "mxfp8"]
"""Recipes of FP8 scaling, by megatron-core's names.

`delayed` scales a tensor by its maxima in earlier steps, `tensorwise` by its own maximum (current
scaling), `blockwise` and `mxfp8` by the maxima of blocks of 128 and of 32 values.
"""
Recompute = Literal["none", "selective", "full"]
Purpose = Literal["training", "scoring"]

FP8_BLOCK: dict[Fp8Recipe, int] = {
    "off": 1,
    "delayed": 16,
    "tensorwise": 16,
    "blockwise": 128,
    "mxfp8": 32,
}
"""What all sizes of an FP8 matrix product must be multiples of.

They are the widths of the weights, and the tokens that one tensor-parallel process holds.
"""


class BackendSettings(StrictConfig):
    """What a person may ask of the engine; the defaults run anywhere."""

    engine: EngineName = "auto"
    cp_comm_type: Communication = "auto"
    """How Transformer Engine passes K/V between context-parallel processes; `auto`: p2p, a ring."""
    fp8: Fp8Recipe = "off"
    """Recipe of FP8 matrix products in the layers."""
    fp8_attention: bool = False
    """Whether attention is in FP8 as well."""
    fp8_attention_backward: bool = True
    """Whether the gradient of FP8 attention is in FP8 as well; false: in BF16."""
    fp8_scoring: bool = False
    """Whether scores are computed in FP8 too.

    Set it only where benchmarks/fp8_ranking.py has shown that FP8 keeps the order of candidates.
    """
    packed: bool = True
    """Whether rows may hold several documents.

    False promises one document per row, for which there are more attention kernels.
    """
    fused_rope: bool = False
    """Whether Transformer Engine's kernel rotates queries and keys, in float32."""

    def for_scoring(self) -> BackendSettings:
        """Returns the settings for searches and evaluation: FP8 off, unless `fp8_scoring` is set.

        >>> BackendSettings(fp8="delayed").for_scoring().fp8
        'off'
        """
        if self.fp8_scoring:
            return self
        return self.model_copy(
            update={"fp8": "off", "fp8_attention": False, "fp8_attention_backward": True}
        )


@dataclass(frozen=True)
class Combination:
    """Everything about a run that decides whether its model can be built on a machine.

    Rules (engine/rules) are functions of this and of the machine's `GpuStack`.
    """

    settings: BackendSettings
    engine: Engine
    shape: ModelShape
    layout: ParallelLayout
    dtype: torch.dtype = torch.bfloat16
    recompute: Recompute = "none"
    purpose: Purpose = "training"
    sliding_window: bool = False
    sequence_length: int | None = None
    """Tokens of one row over all processes, where known before building."""

    @property
    def communication(self) -> Communication:
        """How Transformer Engine's context parallelism communicates; `auto` is p2p."""
        return "p2p" if self.settings.cp_comm_type == "auto" else self.settings.cp_comm_type

    @property
    def kv_heads_per_rank(self) -> int:
        """Number of K/V heads of one tensor-parallel process."""
        return self.shape.num_kv_heads // self.layout.tensor_parallel

    @property
    def projected_width(self) -> int:
        """Number of values per token in one tensor-parallel process's query, key and value."""
        heads = self.shape.num_heads + 2 * self.shape.num_kv_heads
        return heads // self.layout.tensor_parallel * self.shape.head_dim
