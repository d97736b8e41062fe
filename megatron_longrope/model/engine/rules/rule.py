"""What a rule is, and the questions that several rules ask.

`TE:file:line` in a rule says where a fact was read in the sources of Transformer Engine 2.11: under
transformer_engine/pytorch, attention files under attention/dot_product_attention;
`TE:fused_attn.cpp` is in transformer_engine/common/fused_attn. Versions 2.9 and 2.10 agree except
where a rule says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from packaging.version import Version

from megatron_longrope.model.engine.settings import Combination
from megatron_longrope.runtime.gpu_stack import GpuStack


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One combination that cannot be built, and what a person is told about it."""

    setting: str
    """The setting that the refusal names."""
    case: str
    """When it is refused, in words."""
    why: str
    """Why it is refused, or what to do instead."""
    source: str = ""
    """Where that was read."""
    refuses: Callable[[Combination, GpuStack], bool]
    """Whether the rule refuses a combination on a machine."""
    value: Callable[[Combination, GpuStack], object]
    """The setting's value, as the refusal shows it."""


def uses_te(w: Combination) -> bool:
    """Returns whether Transformer Engine builds the layers."""
    return w.engine == "transformer-engine"


def uses_fp8(w: Combination) -> bool:
    """Returns whether matrix products are to run in FP8."""
    return w.settings.fp8 != "off"


def communicates_by(w: Combination, *kinds: str) -> bool:
    """Returns whether Transformer Engine's context parallelism runs in one of these ways."""
    return uses_te(w) and w.layout.context_parallel > 1 and w.communication in kinds


def is_below(stack: GpuStack, capability: tuple[int, int]) -> bool:
    """Returns whether there is a device and its compute capability is lower than this."""
    return stack.capability is not None and stack.capability < capability


def is_older(version: str | None, minimum: str) -> bool:
    """Returns whether a version is known and below `minimum`."""
    return version is not None and Version(version) < Version(minimum)


def engine_of(w: Combination, _: GpuStack) -> object:
    """Returns the engine as a refusal shows it."""
    return w.engine


def dtype_of(w: Combination, _: GpuStack) -> object:
    """Returns the dtype as a refusal shows it."""
    return str(w.dtype).removeprefix("torch.")


def recipe_of(w: Combination, _: GpuStack) -> object:
    """Returns the FP8 recipe as a refusal shows it."""
    return w.settings.fp8


def head_dim_of(w: Combination, _: GpuStack) -> object:
    """Returns head_dim as a refusal shows it."""
    return w.shape.head_dim


def cp_comm_type_of(w: Combination, _: GpuStack) -> object:
    """Returns how context parallelism was asked to communicate, as a refusal shows it."""
    return w.settings.cp_comm_type


def fp8_attention_of(w: Combination, _: GpuStack) -> object:
    """Returns fp8_attention as a refusal shows it."""
    return w.settings.fp8_attention


def device_of(_: Combination, stack: GpuStack) -> object:
    """Returns the device's architecture as a refusal shows it."""
    return "none" if stack.capability is None else "sm{}{}".format(*stack.capability)
