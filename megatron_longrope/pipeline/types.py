"""What several stages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_longrope.search import SearchProgress

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _silent_search(name: str) -> Callable[[SearchProgress], None]:
    return lambda progress: None


def _silent_training(name: str) -> Callable[[int, int, str], None]:
    return lambda done, total, message: None


@dataclass(frozen=True)
class Progress:
    """Where a run shows how far it is; silent by default.

    `stage(text)` says what begins; `search(name)` and `training(name)` return what to call with a
    stage's progress.
    """

    stage: Callable[[str], None] = lambda text: None
    search: Callable[[str], Callable[[SearchProgress], None]] = _silent_search
    training: Callable[[str], Callable[[int, int, str], None]] = _silent_training
