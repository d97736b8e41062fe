"""The environment variables by which Transformer Engine is told what it takes no argument for.

It reads them at each call of attention, so setting them in the process works. One that a person set otherwise is
respected by refusing.
"""

from __future__ import annotations

import os

from megatron_longrope.errors import InputError

_ours: set[str] = set()
"""Variables this process has set here: those it may change again."""


def prepare_transformer_engine(*, fp8_attention_backward: bool | None) -> None:
    """Forbids attention that is quadratic in memory, and says in which precision FP8 attention is differentiated.

    Where no fused kernel serves, Transformer Engine would fall back on a plain softmax over the whole S×S matrix
    without a word; with this it raises instead. `fp8_attention_backward` is None where attention is not in FP8.
    Raises InputError where a person has set a variable to the opposite.
    """
    _demand("NVTE_UNFUSED_ATTN", "0", "attention without a fused kernel keeps a matrix of length × length")
    if fp8_attention_backward is not None:
        rule = f"this run's fp8_attention_backward is {str(fp8_attention_backward).lower()}"
        _demand("NVTE_FP8_DPA_BWD", "1" if fp8_attention_backward else "0", rule)


def _demand(name: str, value: str, rule: str) -> None:
    if name not in os.environ or name in _ours:
        os.environ[name] = value
        _ours.add(name)
    elif os.environ[name] != value:
        raise InputError(name, os.environ[name], f"unset it or set it to {value}: {rule}")
