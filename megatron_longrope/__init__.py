"""LongRoPE context extension of language models, on megatron-core.

from megatron_longrope import extend_context

result = extend_context(
    "path/to/hf-model", ["a.txt", "b.txt", "c.txt"], target_length="32k", run_dir="runs/32k"
)
print(result.checkpoint)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from megatron_longrope.version import __version__

if TYPE_CHECKING:
    from megatron_longrope.api import Progress as Progress
    from megatron_longrope.api import RunResult as RunResult
    from megatron_longrope.api import extend_context as extend_context

_FROM_API = ("Progress", "RunResult", "extend_context")

__all__ = ["Progress", "RunResult", "__version__", "extend_context"]


def __getattr__(name: str) -> Any:
    """Imports the pipeline, and torch with it, only when one of its names is asked for."""
    if name in _FROM_API:
        return getattr(import_module("megatron_longrope.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
