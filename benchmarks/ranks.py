"""Runs a benchmark's measurement in one process or several on this machine."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Freed memory goes back to the system at once, so that resident memory is what is really in use.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "2",
}


def run_ranks(
    module: str, world_size: int, settings: dict[str, Any], threads: int = 1
) -> list[dict[str, Any]]:
    """Returns the results of `python -m module --worker SETTINGS` in each process, by rank.

    `threads` is the number of threads of every process.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        processes = []
        for rank in range(world_size):
            values = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": world_size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": threads,
                "PYTHONPATH": ROOT,
                "PYTHONWARNINGS": "ignore",
            } | _ALLOCATOR
            environment = os.environ | {name: str(value) for name, value in values.items()}
            command = [
                sys.executable,
                "-m",
                module,
                "--worker",
                json.dumps(settings),
                "--result",
                f"{folder}/{rank}",
            ]
            processes.append(subprocess.Popen(command, env=environment, cwd=ROOT))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"{module}: ranks ended with {codes}")
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(world_size)]


class PeakMemory:
    """Peak memory since this object was made, less what was in use then.

    It is the CUDA device's memory where there is one, else resident memory, as Linux counts it.
    """

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda if torch.cuda.is_available() else None
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
            self._before = self._cuda.memory_allocated()
        else:
            # 5 resets the peak of resident memory, VmHWM, to what is in use now
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status("VmRSS")

    def bytes_above(self) -> int:
        """Returns the bytes between the peak so far and the memory in use at the start."""
        peak = self._cuda.max_memory_allocated() if self._cuda else _status("VmHWM")
        return int(peak - self._before)


def parse_or_measure(
    parser: argparse.ArgumentParser, measure: Callable[[dict[str, Any]], dict[str, Any]]
) -> argparse.Namespace | None:
    """Returns a benchmark's options; in a process of `run_ranks`, measures and returns None.

    Such a process calls `measure` with its settings and writes the result for `run_ranks`.
    """
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.worker:
        return options
    options.result.write_text(json.dumps(measure(json.loads(options.worker))))
    return None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no /proc/self/status here: memory is measured on Linux")
