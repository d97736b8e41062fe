"""Rules on Transformer Engine's fused rotation, and the longest row it can address."""

from __future__ import annotations

from megatron_longrope.model.engine.rules.rule import Rule, uses_te
from megatron_longrope.model.engine.settings import Combination

_INT32_VALUES = 2**31


def max_fused_rope_tokens(wanted: Combination) -> int:
    """Returns how many tokens of a row, over all processes, the fused rotation can address.

    Its offsets are signed 32-bit numbers. Queries and keys are views into the output of the joint
    projection, so offsets step over tokens by the width of query, key and value together.
    """
    return (_INT32_VALUES - 1) // wanted.projected_width * wanted.layout.context_parallel


FUSED_ROPE: tuple[Rule, ...] = (
    Rule(
        setting="sequence_length",
        case="fused_rope with 2³¹ values or more per process in the fused query, key and value",
        why=(
            "the kernel counts in 32 bits: more tensor_parallel or context_parallel, or "
            "fused_rope=false"
        ),
        source="TE:fused_rope.cu:39",
        refuses=lambda w, s: (
            w.settings.fused_rope
            and w.sequence_length is not None
            and w.sequence_length > max_fused_rope_tokens(w)
        ),
        value=lambda w, s: w.sequence_length,
    ),
    Rule(
        setting="fused_rope",
        case="fused_rope without transformer-engine",
        why="the kernel is Transformer Engine's",
        refuses=lambda w, s: w.settings.fused_rope and not uses_te(w),
        value=lambda w, s: w.settings.fused_rope,
    ),
)
