"""The environment variables by which Transformer Engine is told what it takes no argument for.

It reads them at each call of attention, so setting them in the process works.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from megatron_longrope.errors import InputError

_SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
_BACKWARD = "NVTE_FP8_DPA_BWD"
_ours: set[str] = set()
"""Variables this process has set here: those it may change again."""


@contextlib.contextmanager
def switches_kept() -> Iterator[None]:
    """Keeps what is said about kernels of attention while megatron-core makes a model of any
    engine.

    It sets all three switches on and refuses to build where one says otherwise, a person's or ours.
    """
    before = {name: os.environ.pop(name, None) for name in _SWITCHES}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def prepare_transformer_engine(*, fp8_attention_backward: bool | None) -> None:
    """Forbids attention that is quadratic in memory, and says in which precision FP8 attention is
    differentiated.

    Where no fused kernel serves, Transformer Engine would fall back on a plain softmax over the
    whole S×S matrix without a word; with this it raises instead. `fp8_attention_backward` is None
    where attention is not in FP8. Raises InputError where a person has said the opposite of it.
    """
    os.environ["NVTE_UNFUSED_ATTN"] = "0"
    if fp8_attention_backward is None:
        return
    value = "1" if fp8_attention_backward else "0"
    if _BACKWARD in os.environ and _BACKWARD not in _ours and os.environ[_BACKWARD] != value:
        rule = (
            f"unset it: this run's fp8_attention_backward is {str(fp8_attention_backward).lower()}"
        )
        raise InputError(_BACKWARD, os.environ[_BACKWARD], rule)
    os.environ[_BACKWARD] = value
    _ours.add(_BACKWARD)
