"""Runs a function in several gloo processes, as torchrun would, and returns each one's result.

Importing torch, megatron-core and transformers takes each process longer than most tests do. So one
server process imports them once per test session, and every rank is forked from it. Processes that
get a CUDA device are started afresh, since CUDA does not survive a fork.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.05
_SHOWN_CHARACTERS = 3000
_IMPORTED_ONCE = [
    "tests.support.tiny_models",
    "megatron_longrope.pipeline.extend",
    "transformers.models.llama.modeling_llama",
]
_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(_IMPORTED_ONCE)


class RankProcess(Protocol):
    """A started process, however it was started."""

    def poll(self) -> int | None:
        """Returns the exit code; None while the process runs."""

    def kill(self) -> None:
        """Ends the process at once; does nothing where it has ended."""

    def wait(self) -> int | None:
        """Waits for the process to end and returns its exit code."""


class ForkedProcess:
    """A rank forked from the server process, which has imported everything already."""

    def __init__(self, call: Path, rank: int, environment: Mapping[str, str]) -> None:
        os.environ["PYTHONPATH"] = str(ROOT)  # the server, started by the first call, inherits it
        os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no threads but its own
        self._process = _forkserver.Process(
            target=_run_forked, args=(call, rank, dict(environment))
        )
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def run_distributed(
    world_size: int,
    target: Callable[..., Any],
    *args: Any,
    timeout: float = 240,
    on_cuda: bool = False,
) -> list[Any]:
    """Returns `target(*args)` of every rank, in rank order.

    Where one process fails or `timeout` seconds pass, all are killed, and the test fails with what
    each wrote to stderr.

    Args:
        world_size: number of processes.
        target: a module-level function of a test module, which starts its own runtime.
        args: its arguments; they and the results are pickled.
        timeout: seconds for all processes together.
        on_cuda: whether each process gets a CUDA device of its own, instead of none.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder, "call")
        call.write_bytes(pickle.dumps((target.__module__, target.__qualname__, args)))
        processes = [
            _start(rank, world_size, _port(rank, folder), call, on_cuda)
            for rank in range(world_size)
        ]
        try:
            failure = _wait(processes, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failure is not None:
            pytest.fail(
                f"{target.__qualname__} {failure}\n{_errors(call, world_size)}", pytrace=False
            )
        return [pickle.loads(_of(call, rank, "result").read_bytes()) for rank in range(world_size)]  # noqa: S301


def _port(rank: int, folder: str) -> int:
    """Returns a port that was free when rank 0 asked; all ranks get the same one."""
    place = Path(folder, "port")
    if rank == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place.write_text(str(free.getsockname()[1]))
    return int(place.read_text())


def _start(rank: int, world_size: int, port: int, call: Path, on_cuda: bool) -> RankProcess:
    settings = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
        "PYTHONPATH": ROOT,
        "PYTHONWARNINGS": "ignore",
    }
    settings |= {"CUDA_DEVICE_MAX_CONNECTIONS": 1} if on_cuda else {"CUDA_VISIBLE_DEVICES": ""}
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    _of(call, rank, "stderr").touch()  # a rank may be killed before it gets that far
    if not on_cuda:
        return ForkedProcess(call, rank, environment)
    with _of(call, rank, "stderr").open("wb") as stderr:
        command = [sys.executable, "-m", "tests.support.spawn", str(call)]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=stderr, stderr=stderr)


def _wait(processes: list[RankProcess], deadline: float) -> str | None:
    """Waits for all processes to end; returns the first failure in words, or None."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return f"failed on rank {failed[0]} with exit code {codes[failed[0]]}"
        if None not in codes:
            return None
        if time.monotonic() > deadline:
            return (
                "timed out; still running: ranks "
                f"{[rank for rank, code in enumerate(codes) if code is None]}"
            )
        time.sleep(_POLL_SECONDS)


def _errors(call: Path, world_size: int) -> str:
    texts = [
        _of(call, rank, "stderr").read_text(errors="replace")[-_SHOWN_CHARACTERS:]
        for rank in range(world_size)
    ]
    return "\n".join(f"--- rank {rank} ---\n{text}" for rank, text in enumerate(texts))


def _of(call: Path, rank: int, kind: str) -> Path:
    return call.with_name(f"{kind}{rank}")


def _run_forked(call: Path, rank: int, environment: Mapping[str, str]) -> None:
    """Gives a forked process the environment of one started for this rank, and runs the rank."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    warnings.simplefilter("ignore")
    with _of(call, rank, "stderr").open("wb") as stderr:
        os.dup2(stderr.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
    _run_rank(call)


def _run_rank(call: Path) -> None:
    module, name, args = pickle.loads(call.read_bytes())  # noqa: S301
    result = getattr(importlib.import_module(module), name)(*args)
    _of(call, int(os.environ["RANK"]), "result").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    _run_rank(Path(sys.argv[1]))
