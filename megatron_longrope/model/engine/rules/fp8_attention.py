"""Rules on attention in FP8: what its kernels take."""

from __future__ import annotations

from megatron_longrope.model.engine.rules.rule import (
    Rule,
    communicates_by,
    device_of,
    fp8_attention_of,
    head_dim_of,
    is_below,
    recipe_of,
    uses_fp8,
)
from megatron_longrope.model.engine.settings import Combination
from megatron_longrope.runtime.gpu_stack import GpuStack


def _head_dim_without_fp8(w: Combination, stack: GpuStack) -> bool:
    """Returns whether no FP8 attention kernel takes this head_dim.

    Hopper's forward kernel takes head_dim up to 256, its backward kernel only 128; Blackwell's
    kernels take up to 128.
    """
    dim = w.shape.head_dim
    if dim % 16:
        return True
    if is_below(stack, (10, 0)):
        return dim != 128 if w.purpose == "training" else dim > 256
    return dim > 128


FP8_ATTENTION: tuple[Rule, ...] = (
    Rule(
        setting="fp8_attention",
        case="without fp8",
        why="choose a recipe first",
        source="TE:dot_product_attention.py:592",
        refuses=lambda w, s: w.settings.fp8_attention and not uses_fp8(w),
        value=fp8_attention_of,
    ),
    Rule(
        setting="fp8_attention_backward",
        case="false without fp8_attention",
        why="there is no FP8 attention to differentiate otherwise",
        source="TE:context_parallel.py:1345",
        refuses=lambda w, s: not w.settings.fp8_attention_backward and not w.settings.fp8_attention,
        value=lambda w, s: w.settings.fp8_attention_backward,
    ),
    Rule(
        setting="fp8_attention",
        case="with blockwise or mxfp8",
        why="attention knows delayed and tensorwise scaling only",
        source="TE:dot_product_attention.py:673",
        refuses=lambda w, s: w.settings.fp8_attention and w.settings.fp8 in ("blockwise", "mxfp8"),
        value=recipe_of,
    ),
    Rule(
        setting="fp8_attention",
        case="with tensorwise scaling below sm100",
        why="on Hopper only delayed scaling has FP8 attention",
        source="TE:utils.py:486",
        refuses=lambda w, s: (
            w.settings.fp8_attention and w.settings.fp8 == "tensorwise" and is_below(s, (10, 0))
        ),
        value=recipe_of,
    ),
    Rule(
        setting="fp8_attention",
        case="below sm90 or from sm120 on",
        why="no FP8 attention kernel there",
        source="TE:fused_attn.cpp, utils.py:504",
        refuses=lambda w, s: (
            w.settings.fp8_attention and (is_below(s, (9, 0)) or not is_below(s, (12, 0)))
        ),
        value=device_of,
    ),
    Rule(
        setting="fp8_attention",
        case="before cuDNN 9.7 (tensorwise: 9.14), and with 9.10.0",
        why="the kernel for any length is younger, and 9.10.0 has known errors",
        source="TE:fused_attn.cpp, utils.py:491",
        refuses=lambda w, s: (
            w.settings.fp8_attention
            and s.cudnn is not None
            and (
                s.cudnn < ((9, 14, 0) if w.settings.fp8 == "tensorwise" else (9, 7, 0))
                or s.cudnn == (9, 10, 0)
            )
        ),
        value=lambda w, s: s.cudnn,
    ),
    Rule(
        setting="fp8_attention",
        case=(
            "head_dim no multiple of 16, or on Hopper not 128 in training and above 256 in "
            "scoring, on Blackwell above 128"
        ),
        why="no kernel takes this head_dim",
        source="TE:fused_attn.cpp",
        refuses=lambda w, s: w.settings.fp8_attention and _head_dim_without_fp8(w, s),
        value=head_dim_of,
    ),
    Rule(
        setting="fp8_attention",
        case="with packed rows",
        why="the kernel takes one document per row: packed=false, or fp8 without it",
        source="TE:fused_attn.cpp (bshd, sbhd), utils.py:474",
        refuses=lambda w, s: w.settings.fp8_attention and w.settings.packed,
        value=fp8_attention_of,
    ),
    Rule(
        setting="fp8_attention",
        case="with cp_comm_type=all_gather",
        why="that kind would attend in BF16 without a word; use p2p or a2a",
        source="TE:context_parallel.py:4088",
        refuses=lambda w, s: w.settings.fp8_attention and communicates_by(w, "all_gather"),
        value=fp8_attention_of,
    ),
    Rule(
        setting="fp8_attention",
        case="with sliding-window attention",
        why="the FP8 kernel has no window",
        source="TE:utils.py:879",
        refuses=lambda w, s: w.settings.fp8_attention and w.sliding_window,
        value=fp8_attention_of,
    ),
    Rule(
        setting="recompute",
        case="selective with fp8_attention",
        why="attention run again would be scaled otherwise than the first time: full or none",
        source="TE:module/base.py:1045 knows of its own checkpoints only",
        refuses=lambda w, s: (
            w.settings.fp8_attention and w.recompute == "selective" and w.purpose == "training"
        ),
        value=lambda w, s: w.recompute,
    ),
)
