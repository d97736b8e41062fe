"""The CPU as a platform of megatron-core: what it asks of CUDA, answered by the CPU.

megatron-core names the CUDA device in places it gives no way to configure. `install()` covers
exactly those places, for the pinned versions, and only where CUDA is absent; it must run before any
`megatron` module is imported.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")
_FACTORIES = (
    "arange",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "rand",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.DoubleTensor": "torch.cuda.DoubleTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}
_installed = False


def install() -> bool:
    """Makes megatron-core run on the CPU where CUDA is absent. Returns whether this process runs on
    the CPU."""
    global _installed
    if torch.cuda.is_available():
        return False
    if _installed:
        return True
    assert not any(name.startswith("megatron.core") for name in sys.modules), (
        "the CPU platform must be installed before megatron.core is imported"
    )
    # `longrope doctor` says what is missing and what that costs; megatron-core would say so six
    # times per process
    warnings.filterwarnings(
        "ignore", message=r"(Transformer Engine|Apex).*not installed", category=UserWarning
    )
    _redirect_factories()
    _redirect_device_calls()
    _import_without_compiler()
    _redirect_random_state()
    _installed = True
    return True


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `factory` with `device="cuda"` read as the CPU and pinned memory left out: there is
    none to pin for."""

    @functools.wraps(factory)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapper


def _redirect_factories() -> None:
    # torch lists its factories at the first `with torch.device(...)` and keeps the list: it must
    # hold the real ones, or such a context has no effect any more and transformers' from_pretrained
    # leaves its rotary frequencies unset.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


class _NoStream:
    """Stands in for a CUDA stream: the CPU runs everything in order, so there is nothing to wait
    for."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...


@contextlib.contextmanager
def _no_stream(stream: object) -> Iterator[None]:
    yield


def _redirect_device_calls() -> None:
    stream = _NoStream()
    cuda: Any = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.synchronize = lambda device=None: None
    cuda.Stream = _NoStream
    cuda.current_stream = lambda device=None: stream
    cuda.stream = _no_stream
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.manual_seed = torch.manual_seed
    cuda.empty_cache = lambda: None
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign]
    real_type = torch.Tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The optimizers compare `param.type()` with CUDA's type names."""
        name = real_type(self, *args, **kwargs)
        return name if args or kwargs else _TYPE_NAMES.get(name, name)

    tensor.type = type_name


def _import_without_compiler() -> None:
    """Imports megatron-core with its `jit_fuser` a plain function: inductor on a CPU costs more
    than it gains here."""
    real_compile = torch.compile
    torch.compile = lambda function=None, **_: function if function is not None else (lambda f: f)  # type: ignore
    try:
        import megatron.core  # noqa: F401
    finally:
        torch.compile = real_compile


def _redirect_random_state() -> None:
    from megatron.core.tensor_parallel import random as megatron_random

    module: Any = megatron_random
    module._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: (
        torch.get_rng_state()
    )
    module._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(
        new_state
    )
    # Its tracker warns when the CPU's random state moves inside a fork; here that state is the one
    # being forked.
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)
