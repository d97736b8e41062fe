"""The environment variables that tell Transformer Engine what it takes no argument for.

Transformer Engine reads them at each call of attention, so they can be set within the process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from megatron_longrope.errors import InputError

_SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
_BACKWARD = "NVTE_FP8_DPA_BWD"
_ours: set[str] = set()
"""Variables that this module has set, and so may change again; a person's are left alone."""


@contextlib.contextmanager
def switches_kept() -> Iterator[None]:
    """Restores the switches of Transformer Engine's attention kernels after a model is built.

    While megatron-core builds a model, of any engine, it sets all three switches on, and refuses to
    build where one is off already. So they are taken away before, whoever has set them.
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
    """Forbids attention that is quadratic in memory, and sets the precision of FP8's backward pass.

    Where no fused kernel serves, Transformer Engine silently falls back on a plain softmax over the
    whole S×S matrix; with its switch off it raises instead. `fp8_attention_backward` says whether
    FP8 attention has its backward pass in FP8 too, and is None where attention is not in FP8.
    Raises InputError where the environment says the opposite already.
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
