"""The matrix of what combines with what: one rule for each thing that cannot be built, checked
before building.

`TE:file:line` says where in Transformer Engine 2.11 a fact was read (under
transformer_engine/pytorch, the attention files under attention/dot_product_attention);
`TE:fused_attn.cpp` is transformer_engine/common/fused_attn. 2.9 and 2.10 agree except where a rule
says so. docs/gpu.md shows the table; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from packaging.version import Version

from megatron_longrope.errors import InputError
from megatron_longrope.model.engine.settings import FP8_BLOCK, Combination
from megatron_longrope.runtime.gpu_stack import GpuStack

_INT32_VALUES = 2**31


@dataclass(frozen=True)
class Rule:
    """One refusal: the setting it names, in which case, why, and where that was read."""

    setting: str
    case: str
    why: str
    source: str
    refuses: Callable[[Combination, GpuStack], bool]
    value: Callable[[Combination, GpuStack], object]


def check_combination(wanted: Combination, stack: GpuStack) -> None:
    """Raises InputError of the first rule that refuses `wanted` on `stack`."""
    for rule in RULES:
        if rule.refuses(wanted, stack):
            raise InputError(
                rule.setting, rule.value(wanted, stack), f"{rule.why} (refused: {rule.case})"
            )


def matrix_table() -> str:
    """Returns the rules as a Markdown table, in the order in which they are checked."""
    rows = ["| setting | refused | why | read in |", "|---|---|---|---|"]
    rows += [f"| `{rule.setting}` | {rule.case} | {rule.why} | {rule.source} |" for rule in RULES]
    return "\n".join(rows)


def max_fused_rope_tokens(wanted: Combination) -> int:
    """Returns how many tokens of a row, over all processes, the fused rotation can address.

    Its offsets are 32-bit, and keys are a view into the output of the joint projection.
    """
    return (_INT32_VALUES - 1) // wanted.projected_width * wanted.layout.context_parallel


def _uses_te(w: Combination) -> bool:
    return w.engine == "transformer-engine"


def _below(stack: GpuStack, capability: tuple[int, int]) -> bool:
    return stack.capability is not None and stack.capability < capability


def _older(version: str | None, minimum: str) -> bool:
    return version is not None and Version(version) < Version(minimum)


def _fp8(w: Combination) -> bool:
    return w.settings.fp8 != "off"


def _under_cp(w: Combination, *kinds: str) -> bool:
    return _uses_te(w) and w.layout.context_parallel > 1 and w.communication in kinds


def _fp8_widths(w: Combination) -> tuple[int, ...]:
    """Input and output sizes of this rank's matrix products."""
    tp = w.layout.tensor_parallel
    return (
        w.shape.hidden_size,
        w.projected_width,
        w.shape.num_heads * w.shape.head_dim // tp,
        2 * w.shape.ffn_hidden_size // tp,
        w.shape.ffn_hidden_size // tp,
    )


def _wrong_widths(w: Combination) -> list[int]:
    return (
        [width for width in _fp8_widths(w) if width % FP8_BLOCK[w.settings.fp8]] if _fp8(w) else []
    )


def _head_dim_without_fp8(w: Combination, stack: GpuStack) -> bool:
    dim = w.shape.head_dim
    if dim % 16:
        return True
    if _below(stack, (10, 0)):
        return dim != 128 if w.purpose == "training" else dim > 256
    return dim > 128


def _engine(w: Combination, _: GpuStack) -> object:
    return w.engine


def _dtype(w: Combination, _: GpuStack) -> object:
    return str(w.dtype).removeprefix("torch.")


def _recipe(w: Combination, _: GpuStack) -> object:
    return w.settings.fp8


def _head_dim(w: Combination, _: GpuStack) -> object:
    return w.shape.head_dim


def _kind(w: Combination, _: GpuStack) -> object:
    return w.settings.cp_comm_type


def _fp8_attention(w: Combination, _: GpuStack) -> object:
    return w.settings.fp8_attention


def _device(_: Combination, stack: GpuStack) -> object:
    return "none" if stack.capability is None else "sm{}{}".format(*stack.capability)


RULES: tuple[Rule, ...] = (
    Rule(
        "engine",
        "transformer-engine or flash-attn without a CUDA device",
        "needs a CUDA device; torch runs anywhere",
        "TE:module/base.py:606",
        lambda w, s: w.engine != "torch" and not s.has_cuda,
        _engine,
    ),
    Rule(
        "engine",
        "transformer-engine where it is absent",
        "Transformer Engine ≥ 2.9, < 2.12 must load: longrope doctor",
        "megatron-core 0.16.1's pyproject",
        lambda w, s: _uses_te(w) and s.transformer_engine is None,
        _engine,
    ),
    Rule(
        "engine",
        "flash-attn where it is absent",
        "the package flash-attn must load: longrope doctor",
        "",
        lambda w, s: w.engine == "flash-attn" and s.flash_attn is None,
        _engine,
    ),
    Rule(
        "dtype",
        "transformer-engine or flash-attn with anything but bfloat16",
        "its attention kernels take bfloat16",
        "TE:utils.py:436, flash_api.cpp",
        lambda w, s: w.engine != "torch" and w.dtype != torch.bfloat16,
        _dtype,
    ),
    Rule(
        "head_dim",
        "transformer-engine or flash-attn above 256, or no multiple of 8",
        "no kernel takes it",
        "TE:utils.py:621, flash_api.cpp",
        lambda w, s: w.engine != "torch" and (w.shape.head_dim > 256 or w.shape.head_dim % 8 > 0),
        _head_dim,
    ),
    Rule(
        "device",
        "transformer-engine or flash-attn below sm80",
        "their attention kernels begin with Ampere",
        "TE:utils.py:423, flash_api.cpp",
        lambda w, s: w.engine != "torch" and _below(s, (8, 0)),
        _device,
    ),
    Rule(
        "packed",
        "transformer-engine from sm120 on without flash-attn",
        "cuDNN takes no packed documents there: flash-attn or packed=false",
        "TE:utils.py:686",
        lambda w, s: (
            _uses_te(w) and w.settings.packed and not _below(s, (12, 0)) and s.flash_attn is None
        ),
        lambda w, s: w.settings.packed,
    ),
    Rule(
        "engine",
        "flash-attn with context_parallel above 1",
        "use torch: its ring attention has kernels of its own",
        "",
        lambda w, s: w.engine == "flash-attn" and w.layout.context_parallel > 1,
        _engine,
    ),
    Rule(
        "cp_comm_type",
        "given without transformer-engine",
        "it is Transformer Engine's; leave it at auto",
        "",
        lambda w, s: w.settings.cp_comm_type != "auto" and not _uses_te(w),
        _kind,
    ),
    Rule(
        "cp_comm_type",
        "given with context_parallel=1",
        "there is nobody to communicate with; leave it at auto",
        "",
        lambda w, s: w.settings.cp_comm_type != "auto" and w.layout.context_parallel == 1,
        _kind,
    ),
    Rule(
        "context_exchange",
        "given with transformer-engine",
        "it is our own attention's; choose cp_comm_type instead",
        "",
        lambda w, s: w.layout.context_exchange != "auto" and _uses_te(w),
        lambda w, s: w.layout.context_exchange,
    ),
    Rule(
        "context_parallel_a2a",
        "above 1 without cp_comm_type=a2a+p2p",
        "it is the size of that kind's inner groups",
        "",
        lambda w, s: w.layout.context_parallel_a2a > 1 and w.settings.cp_comm_type != "a2a+p2p",
        lambda w, s: w.layout.context_parallel_a2a,
    ),
    Rule(
        "context_parallel_a2a",
        "1 or context_parallel itself, with a2a+p2p",
        "a2a+p2p has two levels; use p2p or a2a for one",
        "TE:context_parallel.py:3993",
        lambda w, s: (
            _under_cp(w, "a2a+p2p")
            and w.layout.context_parallel_a2a in (1, w.layout.context_parallel)
        ),
        lambda w, s: w.layout.context_parallel_a2a,
    ),
    Rule(
        "cp_comm_type",
        "a2a where K/V heads per tensor-parallel process are no multiple of context_parallel",
        "all-to-all deals whole K/V heads out to the processes",
        "TE:context_parallel.py:3366",
        lambda w, s: _under_cp(w, "a2a") and w.kv_heads_per_rank % w.layout.context_parallel > 0,
        _kind,
    ),
    Rule(
        "cp_comm_type",
        "a2a+p2p where K/V heads per tensor-parallel process are no multiple of "
        "context_parallel_a2a",
        "all-to-all deals whole K/V heads out to the inner group",
        "TE:context_parallel.py:417",
        lambda w, s: (
            _under_cp(w, "a2a+p2p") and w.kv_heads_per_rank % w.layout.context_parallel_a2a > 0
        ),
        _kind,
    ),
    Rule(
        "cp_comm_type",
        "all_gather or a2a+p2p with packed rows",
        "takes one document per row: packed=false, p2p or a2a",
        "TE:context_parallel.py:2842, :3990",
        lambda w, s: _under_cp(w, "all_gather", "a2a+p2p") and w.settings.packed,
        _kind,
    ),
    Rule(
        "cp_comm_type",
        "a2a with packed rows under Transformer Engine 2.9",
        "takes packed rows from version 2.10 on",
        "TE 2.9:context_parallel.py:3193",
        lambda w, s: (
            _under_cp(w, "a2a") and w.settings.packed and _older(s.transformer_engine, "2.10")
        ),
        _kind,
    ),
    Rule(
        "cp_comm_type",
        "p2p or a2a+p2p with sliding-window attention",
        "only all_gather and a2a know the window",
        "TE:context_parallel.py:4026",
        lambda w, s: _under_cp(w, "p2p", "a2a+p2p") and w.sliding_window,
        _kind,
    ),
    Rule(
        "fp8",
        "without transformer-engine",
        "FP8 is Transformer Engine's",
        "",
        lambda w, s: _fp8(w) and not _uses_te(w),
        _recipe,
    ),
    Rule(
        "device",
        "fp8 below sm89",
        "has no FP8 matrix products",
        "TE:quantization.py:48",
        lambda w, s: _fp8(w) and _below(s, (8, 9)),
        _device,
    ),
    Rule(
        "fp8",
        "blockwise below sm90 or before CUDA 12.9",
        "its matrix products need both",
        "TE:quantization.py:80",
        lambda w, s: (
            w.settings.fp8 == "blockwise" and (_below(s, (9, 0)) or _older(s.cuda, "12.9"))
        ),
        _recipe,
    ),
    Rule(
        "fp8",
        "mxfp8 outside sm100 to sm119",
        "only these have it",
        "TE:quantization.py:62",
        lambda w, s: w.settings.fp8 == "mxfp8" and (_below(s, (10, 0)) or not _below(s, (12, 0))),
        _recipe,
    ),
    Rule(
        "fp8",
        "where a matrix of this model, cut by tensor_parallel, is no multiple of 16 wide "
        "(blockwise 128, mxfp8 32)",
        "an FP8 matrix product takes whole blocks",
        "TE:utils.py:439, tensor/float8_blockwise_tensor.py:216",
        lambda w, s: bool(_wrong_widths(w)),
        lambda w, s: f"{w.settings.fp8} with widths {', '.join(map(str, _wrong_widths(w)))}",
    ),
    Rule(
        "fp8",
        "scoring, unless fp8_scoring is set",
        "FP8 may reorder candidates: benchmarks/fp8_ranking.py, then fp8_scoring",
        "FP8 accumulation on Hopper has cost needle accuracy at length",
        lambda w, s: _fp8(w) and w.purpose == "scoring" and not w.settings.fp8_scoring,
        _recipe,
    ),
    Rule(
        "fp8",
        "scoring with delayed scaling",
        "its scales move with gradients on only: a fresh model would keep scale 1",
        "TE:quantization.py:607",
        lambda w, s: w.settings.fp8 == "delayed" and w.purpose == "scoring",
        _recipe,
    ),
    Rule(
        "fp8_attention",
        "without fp8",
        "choose a recipe first",
        "TE:dot_product_attention.py:592",
        lambda w, s: w.settings.fp8_attention and not _fp8(w),
        _fp8_attention,
    ),
    Rule(
        "fp8_attention_backward",
        "false without fp8_attention",
        "there is no FP8 attention to differentiate otherwise",
        "TE:context_parallel.py:1345",
        lambda w, s: not w.settings.fp8_attention_backward and not w.settings.fp8_attention,
        lambda w, s: w.settings.fp8_attention_backward,
    ),
    Rule(
        "fp8_attention",
        "with blockwise or mxfp8",
        "attention knows delayed and tensorwise scaling only",
        "TE:dot_product_attention.py:673",
        lambda w, s: w.settings.fp8_attention and w.settings.fp8 in ("blockwise", "mxfp8"),
        _recipe,
    ),
    Rule(
        "fp8_attention",
        "with tensorwise scaling below sm100",
        "on Hopper only delayed scaling has FP8 attention",
        "TE:utils.py:486",
        lambda w, s: (
            w.settings.fp8_attention and w.settings.fp8 == "tensorwise" and _below(s, (10, 0))
        ),
        _recipe,
    ),
    Rule(
        "fp8_attention",
        "below sm90 or from sm120 on",
        "no FP8 attention kernel there",
        "TE:fused_attn.cpp, utils.py:504",
        lambda w, s: w.settings.fp8_attention and (_below(s, (9, 0)) or not _below(s, (12, 0))),
        _device,
    ),
    Rule(
        "fp8_attention",
        "before cuDNN 9.7 (tensorwise: 9.14), and with 9.10.0",
        "the kernel for any length is younger, and 9.10.0 has known errors",
        "TE:fused_attn.cpp, utils.py:491",
        lambda w, s: (
            w.settings.fp8_attention
            and s.cudnn is not None
            and (
                s.cudnn < ((9, 14, 0) if w.settings.fp8 == "tensorwise" else (9, 7, 0))
                or s.cudnn == (9, 10, 0)
            )
        ),
        lambda w, s: s.cudnn,
    ),
    Rule(
        "fp8_attention",
        "head_dim no multiple of 16, or on Hopper not 128 in training and above 256 in scoring, on "
        "Blackwell above 128",
        "no kernel takes this head_dim",
        "TE:fused_attn.cpp",
        lambda w, s: w.settings.fp8_attention and _head_dim_without_fp8(w, s),
        _head_dim,
    ),
    Rule(
        "fp8_attention",
        "with packed rows",
        "the kernel takes one document per row: packed=false, or fp8 without it",
        "TE:fused_attn.cpp (bshd, sbhd), utils.py:474",
        lambda w, s: w.settings.fp8_attention and w.settings.packed,
        _fp8_attention,
    ),
    Rule(
        "fp8_attention",
        "with cp_comm_type=all_gather",
        "that kind would attend in BF16 without a word; use p2p or a2a",
        "TE:context_parallel.py:4088",
        lambda w, s: w.settings.fp8_attention and _under_cp(w, "all_gather"),
        _fp8_attention,
    ),
    Rule(
        "fp8_attention",
        "with sliding-window attention",
        "the FP8 kernel has no window",
        "TE:utils.py:879",
        lambda w, s: w.settings.fp8_attention and w.sliding_window,
        _fp8_attention,
    ),
    Rule(
        "recompute",
        "selective with fp8_attention",
        "attention run again would be scaled otherwise than the first time: full or none",
        "TE:module/base.py:1045 knows of its own checkpoints only",
        lambda w, s: (
            w.settings.fp8_attention and w.recompute == "selective" and w.purpose == "training"
        ),
        lambda w, s: w.recompute,
    ),
    Rule(
        "sequence_length",
        "fused_rope with 2³¹ values or more per process in the fused query, key and value",
        "the kernel counts in 32 bits: more tensor_parallel or context_parallel, or "
        "fused_rope=false",
        "TE:fused_rope.cu:39",
        lambda w, s: (
            w.settings.fused_rope
            and w.sequence_length is not None
            and w.sequence_length > max_fused_rope_tokens(w)
        ),
        lambda w, s: w.sequence_length,
    ),
    Rule(
        "fused_rope",
        "fused_rope without transformer-engine",
        "the kernel is Transformer Engine's",
        "",
        lambda w, s: w.settings.fused_rope and not _uses_te(w),
        lambda w, s: w.settings.fused_rope,
    ),
)
