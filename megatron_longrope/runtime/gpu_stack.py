"""What of the GPU software stack is installed, and the engine that `auto` chooses by it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch

from megatron_longrope.runtime.machine_report import (
    flash_attention,
    installed_version,
    transformer_engine,
)

Engine = Literal["transformer-engine", "flash-attn", "torch"]
"""What layers and attention are built with.

`transformer-engine`: NVIDIA's layers and attention. `flash-attn` and `torch`: megatron-core's local
layers, with attention by the flash-attn package or by torch's own kernels.
"""

Capability = tuple[int, int]
"""Compute capability of a CUDA device: (9, 0) for an H100, in messages sm90."""


@dataclass(frozen=True)
class GpuStack:
    """Versions and abilities that decide what can be built; None: absent, or not usable."""

    capability: Capability | None = None
    """Compute capability of this process's device; None without a CUDA device."""
    cuda: str | None = None
    """Version of CUDA that torch was built for."""
    cudnn: tuple[int, int, int] | None = None
    """Version of cuDNN: major, minor, patch."""
    transformer_engine: str | None = None
    """Version of Transformer Engine."""
    flash_attn: str | None = None
    """Version of the flash-attn package."""
    transformer_engine_absence: str = "not installed"
    """Why Transformer Engine is not usable: outside the supported versions, does not load, …"""
    flash_attn_absence: str = "not installed"
    """Why flash-attn is not usable."""

    @property
    def has_cuda(self) -> bool:
        """Whether there is a CUDA device."""
        return self.capability is not None


@dataclass(frozen=True)
class EngineChoice:
    """The engine that `auto` chooses, and the reason in one line."""

    engine: Engine
    reason: str


@functools.lru_cache(maxsize=1)
def gpu_stack() -> GpuStack:
    """Returns what this process's device and the installed packages are.

    They are looked at once: neither changes while the process runs.
    """
    if not torch.cuda.is_available():
        return GpuStack()
    found, flash = transformer_engine(), flash_attention()
    return GpuStack(
        capability=torch.cuda.get_device_capability(),
        cuda=torch.version.cuda,
        cudnn=_cudnn_version(torch.backends.cudnn.version()),
        transformer_engine=_version("transformer-engine", "transformer-engine-torch")
        if found.present
        else None,
        flash_attn=_version("flash-attn") if flash.present else None,
        transformer_engine_absence=found.detail,
        flash_attn_absence=flash.detail,
    )


def choose_engine(
    stack: GpuStack,
    dtype: torch.dtype = torch.bfloat16,
    context_parallel: int = 1,
    head_dim: int = 128,
) -> EngineChoice:
    """Returns what `auto` chooses: Transformer Engine where usable, else flash-attn, else torch.

    >>> choose_engine(GpuStack())
    EngineChoice(engine='torch', reason='no CUDA device')
    """
    if stack.capability is None:
        return EngineChoice("torch", "no CUDA device")
    if stack.capability < (8, 0):
        major, minor = stack.capability
        return EngineChoice(
            "torch", f"the other kernels begin with sm80, this device is sm{major}{minor}"
        )
    if head_dim > 256 or head_dim % 8:
        return EngineChoice("torch", f"the other kernels do not take head_dim={head_dim}")
    if dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        return EngineChoice(
            "torch", f"the kernels of Transformer Engine and flash-attn take bfloat16, not {name}"
        )
    if stack.transformer_engine is not None and (
        stack.capability < (12, 0) or stack.flash_attn is not None
    ):
        return EngineChoice(
            "transformer-engine", f"version {stack.transformer_engine} loads on this CUDA device"
        )
    missing = f"Transformer Engine: {stack.transformer_engine_absence}"
    if stack.transformer_engine is not None:
        missing = "Transformer Engine has no kernel for packed documents here without flash-attn"
    if stack.flash_attn is None:
        return EngineChoice("torch", f"{missing}; flash-attn: {stack.flash_attn_absence}")
    if context_parallel > 1:
        return EngineChoice("torch", f"{missing}; flash-attn serves context_parallel=1 only")
    return EngineChoice("flash-attn", f"{missing}; flash-attn {stack.flash_attn} loads")


def _version(*names: str) -> str | None:
    return next(
        (version for name in names if (version := installed_version(name)) is not None), None
    )


def _cudnn_version(encoded: int | None) -> tuple[int, int, int] | None:
    """Returns (major, minor, patch) of a version that torch gives as one number.

    cuDNN 9 counts 10000 per major version, cuDNN 8 counted 1000: 91400 is 9.14.0, 8905 is 8.9.5.
    """
    if encoded is None:
        return None
    major, rest = divmod(encoded, 10000 if encoded >= 90000 else 1000)
    return major, rest // 100, rest % 100
