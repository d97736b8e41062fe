"""Rules on attention kernels: which engine has them for a device, a dtype and a head_dim."""

from __future__ import annotations

import torch

from megatron_longrope.model.engine.rules.rule import (
    Rule,
    device_of,
    dtype_of,
    engine_of,
    head_dim_of,
    is_below,
    uses_te,
)

KERNELS: tuple[Rule, ...] = (
    Rule(
        setting="engine",
        case="transformer-engine or flash-attn without a CUDA device",
        why="needs a CUDA device; torch runs anywhere",
        source="TE:module/base.py:606",
        refuses=lambda w, s: w.engine != "torch" and not s.has_cuda,
        value=engine_of,
    ),
    Rule(
        setting="engine",
        case="transformer-engine where it is absent",
        why="Transformer Engine ≥ 2.9, < 2.12 must load: longrope doctor",
        source="megatron-core 0.16.1's pyproject",
        refuses=lambda w, s: uses_te(w) and s.transformer_engine is None,
        value=engine_of,
    ),
    Rule(
        setting="engine",
        case="flash-attn where it is absent",
        why="the package flash-attn must load: longrope doctor",
        refuses=lambda w, s: w.engine == "flash-attn" and s.flash_attn is None,
        value=engine_of,
    ),
    Rule(
        setting="dtype",
        case="transformer-engine or flash-attn with anything but bfloat16",
        why="its attention kernels take bfloat16",
        source="TE:utils.py:436, flash_api.cpp",
        refuses=lambda w, s: w.engine != "torch" and w.dtype != torch.bfloat16,
        value=dtype_of,
    ),
    Rule(
        setting="head_dim",
        case="transformer-engine or flash-attn above 256, or no multiple of 8",
        why="no kernel takes it",
        source="TE:utils.py:621, flash_api.cpp",
        refuses=lambda w, s: (
            w.engine != "torch" and (w.shape.head_dim > 256 or w.shape.head_dim % 8 > 0)
        ),
        value=head_dim_of,
    ),
    Rule(
        setting="device",
        case="transformer-engine or flash-attn below sm80",
        why="their attention kernels begin with Ampere",
        source="TE:utils.py:423, flash_api.cpp",
        refuses=lambda w, s: w.engine != "torch" and is_below(s, (8, 0)),
        value=device_of,
    ),
    Rule(
        setting="packed",
        case="transformer-engine from sm120 on without flash-attn",
        why="cuDNN takes no packed documents there: flash-attn or packed=false",
        source="TE:utils.py:686",
        refuses=lambda w, s: (
            uses_te(w) and w.settings.packed and not is_below(s, (12, 0)) and s.flash_attn is None
        ),
        value=lambda w, s: w.settings.packed,
    ),
    Rule(
        setting="engine",
        case="flash-attn with context_parallel above 1",
        why="use torch: its ring attention has kernels of its own",
        refuses=lambda w, s: w.engine == "flash-attn" and w.layout.context_parallel > 1,
        value=engine_of,
    ),
)
