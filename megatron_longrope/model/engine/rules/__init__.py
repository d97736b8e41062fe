"""The table of what cannot be combined, one rule for each case, checked before building.

Each file beside this one holds the rules of one subject. Most rules repeat a limit of Transformer
Engine. That would raise it late (at the first attention call, on every rank at once, after the
weights are loaded), or not at all where it takes another kernel instead. docs/gpu.md shows all
rules; a test keeps the two in step.
"""

from __future__ import annotations

from megatron_longrope.errors import InputError
from megatron_longrope.model.engine.rules.communication import COMMUNICATION
from megatron_longrope.model.engine.rules.fp8 import FP8
from megatron_longrope.model.engine.rules.fp8_attention import FP8_ATTENTION
from megatron_longrope.model.engine.rules.fused_rope import FUSED_ROPE, max_fused_rope_tokens
from megatron_longrope.model.engine.rules.kernels import KERNELS
from megatron_longrope.model.engine.rules.rule import Rule
from megatron_longrope.model.engine.settings import Combination
from megatron_longrope.runtime.gpu_stack import GpuStack

__all__ = ["RULES", "Rule", "check_combination", "matrix_table", "max_fused_rope_tokens"]

RULES: tuple[Rule, ...] = (*KERNELS, *COMMUNICATION, *FP8, *FP8_ATTENTION, *FUSED_ROPE)
"""All rules, in the order in which they are checked: a refusal names the first that applies."""


def check_combination(wanted: Combination, stack: GpuStack) -> None:
    """Raises the InputError of the first rule that refuses `wanted` on `stack`, if any does."""
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
