"""The CPU as a platform of megatron-core: what it asks of CUDA is answered by the CPU.

megatron-core 0.16 is written for CUDA devices and names them in places that cannot be configured.
`install()` covers exactly those places, and only where CUDA is absent; on a GPU machine it does
nothing. What it replaces, and who in megatron-core asks for it:

- torch's factories with `device="cuda"` or `pin_memory=True`: layers, communication buffers,
  gradient buffers, rotary tables.
- `torch.cuda`'s current device, streams and synchronize: schedules and data parallelism.
- `Tensor.cuda()` and `Module.cuda()`: optimizer, broadcast of data.
- `Tensor.type()`: the optimizers compare its text with CUDA's names of types.
- `torch.compile`, during the import: activations and losses are decorated with it.
- the random states of `tensor_parallel.random`: dropout and recomputation fork CUDA's.

It must run before any `megatron` module is imported, so that none keeps a reference to what was
there before.
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
"""Functions of torch that megatron-core calls with a CUDA device or with pinned memory."""
_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.DoubleTensor": "torch.cuda.DoubleTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}
_installed = False


def install() -> bool:
    """Makes megatron-core run on the CPU where CUDA is absent; returns whether it is absent.

    Calling it again does nothing more.
    """
    global _installed
    if torch.cuda.is_available():
        return False
    if _installed:
        return True
    assert not any(name.startswith("megatron.core") for name in sys.modules), (
        "the CPU platform must be installed before megatron.core is imported"
    )
    # megatron-core warns six times per process that Transformer Engine and Apex are missing, which
    # on a CPU they always are. `longrope doctor` says so once, with what it costs.
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
    """Returns `factory` with `device="cuda"` read as the CPU, and without pinned memory.

    Pinning memory needs CUDA's driver, and without a device nothing is copied from it.
    """

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
    # Within `with torch.device(...)` torch recognizes its factories by a list that it makes once,
    # at first use. It must be made before the factories are wrapped: with the wrapped ones in it
    # such a context had no effect, and transformers' from_pretrained left rotary frequencies unset.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


class _NoStream:
    """Stands in for a CUDA stream; the CPU does everything in order, so nobody has to wait."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...


@contextlib.contextmanager
def _no_stream(stream: object) -> Iterator[None]:
    yield


def _redirect_device_calls() -> None:
    """Replaces the device calls of `torch.cuda`, `Tensor.cuda`, `Module.cuda` and `Tensor.type`."""
    stream = _NoStream()
    cuda: Any = torch.cuda
    # Given as `device=` to factories and layers; a CPU device serves there as well as an index.
    cuda.current_device = lambda: CPU
    # The schedules and data parallelism overlap communication on streams of their own.
    cuda.synchronize = lambda device=None: None
    cuda.Stream = _NoStream
    cuda.current_stream = lambda device=None: stream
    cuda.stream = _no_stream
    # Dropout and recomputation save and restore the state from which the device draws numbers.
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.manual_seed = torch.manual_seed
    cuda.empty_cache = lambda: None
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign]
    real_type = torch.Tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns CUDA's name of a CPU tensor's type; megatron-core's optimizers accept no other.

        They sort parameters by comparing `param.type()` with `torch.cuda.FloatTensor` and the like,
        and raise for the rest.
        """
        name = real_type(self, *args, **kwargs)
        return name if args or kwargs else _TYPE_NAMES.get(name, name)

    tensor.type = type_name


def _import_without_compiler() -> None:
    """Imports megatron-core with `torch.compile` switched off, and switches it on again.

    megatron-core binds its `jit_fuser` to torch.compile while it is imported. On a CPU compiling
    takes longer than the compiled functions save, and it needs a C++ compiler.
    """
    real_compile = torch.compile
    torch.compile = lambda function=None, **_: function if function is not None else (lambda f: f)  # type: ignore
    try:
        import megatron.core  # noqa: F401
    finally:
        torch.compile = real_compile


def _redirect_random_state() -> None:
    """Makes megatron-core's random-state tracker fork the CPU's state in place of CUDA's."""
    from megatron.core.tensor_parallel import random as megatron_random

    module: Any = megatron_random
    module._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: (
        torch.get_rng_state()
    )
    module._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(
        new_state
    )
    # The tracker warns when the CPU's random state changes within a fork, which on a GPU would be a
    # mistake. Here that state is the one being forked.
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)
