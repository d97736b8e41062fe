"""What may be asked of the engine, and everything that decides whether it can be had."""

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
"""megatron-core's names: `delayed` scales by the maxima of earlier steps, `tensorwise` by the
tensor's own (current scaling), `blockwise` and `mxfp8` by those of blocks of 128 and 32 values."""
Recompute = Literal["none", "selective", "full"]
Purpose = Literal["training", "scoring"]

FP8_BLOCK: dict[Fp8Recipe, int] = {
    "off": 1,
    "delayed": 16,
    "tensorwise": 16,
    "blockwise": 128,
    "mxfp8": 32,
}
"""What the sizes of a matrix product in FP8 are multiples of: widths, and the tokens of one
tensor-parallel process."""


class BackendSettings(StrictConfig):
    """What a person may ask of the engine; the defaults run anywhere."""

    engine: EngineName = "auto"
    cp_comm_type: Communication = "auto"
    """How Transformer Engine passes K and V between context-parallel processes; `auto`: p2p, a
    ring."""
    fp8: Fp8Recipe = "off"
    """Recipe of FP8 matrix products in the layers."""
    fp8_attention: bool = False
    """Attention in FP8 as well."""
    fp8_attention_backward: bool = True
    """Its gradient in FP8 as well; false: BF16."""
    fp8_scoring: bool = False
    """Score in FP8 too. Only where benchmarks/fp8_ranking.py has shown that it keeps the order of
    the candidates."""
    packed: bool = True
    """Rows may hold several documents; false promises one each, which more ways of attention can
    take."""
    fused_rope: bool = False
    """Rotate queries and keys in Transformer Engine's kernel, in float32."""

    def for_scoring(self) -> BackendSettings:
        """Returns the settings for searching and evaluating: without FP8 unless `fp8_scoring` is
        set."""
        if self.fp8_scoring:
            return self
        return self.model_copy(
            update={"fp8": "off", "fp8_attention": False, "fp8_attention_backward": True}
        )


@dataclass(frozen=True)
class Combination:
    """Everything a run wants that decides whether it can be built. The matrix is a function of this
    and the stack."""

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
        """What `auto` stands for."""
        return "p2p" if self.settings.cp_comm_type == "auto" else self.settings.cp_comm_type

    @property
    def kv_heads_per_rank(self) -> int:
        return self.shape.num_kv_heads // self.layout.tensor_parallel

    @property
    def projected_width(self) -> int:
        """Values per token of this rank's query, key and value together."""
        heads = self.shape.num_heads + 2 * self.shape.num_kv_heads
        return heads // self.layout.tensor_parallel * self.shape.head_dim
