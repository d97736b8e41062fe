"""Rules on FP8 matrix products: which recipes a device and a model's sizes allow."""

from __future__ import annotations

from megatron_longrope.model.engine.rules.rule import (
    Rule,
    device_of,
    is_below,
    is_older,
    recipe_of,
    uses_fp8,
    uses_te,
)
from megatron_longrope.model.engine.settings import FP8_BLOCK, Combination


def _fp8_widths(w: Combination) -> tuple[int, ...]:
    """Returns the input and output sizes of this rank's matrix products."""
    tp = w.layout.tensor_parallel
    return (
        w.shape.hidden_size,
        w.projected_width,
        w.shape.num_heads * w.shape.head_dim // tp,
        2 * w.shape.ffn_hidden_size // tp,
        w.shape.ffn_hidden_size // tp,
    )


def _wrong_widths(w: Combination) -> list[int]:
    if not uses_fp8(w):
        return []
    return [width for width in _fp8_widths(w) if width % FP8_BLOCK[w.settings.fp8]]


FP8: tuple[Rule, ...] = (
    Rule(
        setting="fp8",
        case="without transformer-engine",
        why="FP8 is Transformer Engine's",
        refuses=lambda w, s: uses_fp8(w) and not uses_te(w),
        value=recipe_of,
    ),
    Rule(
        setting="device",
        case="fp8 below sm89",
        why="has no FP8 matrix products",
        source="TE:quantization.py:48",
        refuses=lambda w, s: uses_fp8(w) and is_below(s, (8, 9)),
        value=device_of,
    ),
    Rule(
        setting="fp8",
        case="blockwise below sm90 or before CUDA 12.9",
        why="its matrix products need both",
        source="TE:quantization.py:80",
        refuses=lambda w, s: (
            w.settings.fp8 == "blockwise" and (is_below(s, (9, 0)) or is_older(s.cuda, "12.9"))
        ),
        value=recipe_of,
    ),
    Rule(
        setting="fp8",
        case="mxfp8 outside sm100 to sm119",
        why="only these have it",
        source="TE:quantization.py:62",
        refuses=lambda w, s: (
            w.settings.fp8 == "mxfp8" and (is_below(s, (10, 0)) or not is_below(s, (12, 0)))
        ),
        value=recipe_of,
    ),
    Rule(
        setting="fp8",
        case=(
            "where a matrix of this model, cut by tensor_parallel, is no multiple of 16 wide "
            "(blockwise 128, mxfp8 32)"
        ),
        why="an FP8 matrix product takes whole blocks",
        source="TE:utils.py:439, tensor/float8_blockwise_tensor.py:216",
        refuses=lambda w, s: bool(_wrong_widths(w)),
        value=lambda w, s: f"{w.settings.fp8} with widths {', '.join(map(str, _wrong_widths(w)))}",
    ),
    Rule(
        setting="fp8",
        case="scoring, unless fp8_scoring is set",
        why="FP8 may reorder candidates: benchmarks/fp8_ranking.py, then fp8_scoring",
        source="FP8 accumulation on Hopper has cost needle accuracy at length",
        refuses=lambda w, s: uses_fp8(w) and w.purpose == "scoring" and not w.settings.fp8_scoring,
        value=recipe_of,
    ),
    Rule(
        setting="fp8",
        case="scoring with delayed scaling",
        why="its scales move with gradients on only: a fresh model would keep scale 1",
        source="TE:quantization.py:607",
        refuses=lambda w, s: w.settings.fp8 == "delayed" and w.purpose == "scoring",
        value=recipe_of,
    ),
)
