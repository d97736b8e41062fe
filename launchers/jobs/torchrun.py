"""Starts one `longrope` command with torchrun, on one machine or on several that run one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from launchers.jobs.job import (
    Job,
    check_arguments,
    check_positive,
    max_connections,
    threads_per_process,
)
from megatron_longrope.errors import InputError

_ENDPOINT = re.compile(r"[A-Za-z0-9._-]+:\d{1,5}|\[[0-9A-Fa-f:]+\]:\d{1,5}")
_RUN_ID = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class TorchrunOptions:
    """What torchrun is asked for, under its own names."""

    nproc_per_node: int
    """Processes per machine."""
    nnodes: int = 1
    """Machines."""
    rdzv_endpoint: str | None = None
    """HOST:PORT where several machines meet; not for one machine."""
    rdzv_id: str = "longrope"
    """A name of the meeting that all machines share."""


def torchrun_job(options: TorchrunOptions, arguments: Sequence[str]) -> Job:
    """Returns the job; raises InputError for options or arguments that cannot work."""
    processes = check_positive("--nproc-per-node", options.nproc_per_node) * check_positive(
        "--nnodes", options.nnodes
    )
    command = check_arguments(arguments, processes)
    argv = (
        *elastic_argv(options.nproc_per_node, _rendezvous(options)),
        *command,
    )
    environment = {
        "CUDA_DEVICE_MAX_CONNECTIONS": max_connections(),
        "OMP_NUM_THREADS": threads_per_process(options.nproc_per_node),
    }
    return Job(argv, environment)


def elastic_argv(nproc_per_node: int, rendezvous: Sequence[str]) -> tuple[str, ...]:
    """Returns the beginning of the command line: `launchers.jobs.elastic`, which runs torchrun.

    The `--` ends torchrun's own options. Without it argparse would refuse as ambiguous any option
    of a `longrope` command that abbreviates several of torchrun's, such as `--log`.
    """
    return (
        *(sys.executable, "-m", "launchers.jobs.elastic"),
        *rendezvous,
        *("--nproc-per-node", str(nproc_per_node)),
        *("-m", "--", "launchers.main"),
    )


def _rendezvous(options: TorchrunOptions) -> tuple[str, ...]:
    if options.nnodes == 1:
        if options.rdzv_endpoint is not None:
            raise InputError(
                "--rdzv-endpoint", options.rdzv_endpoint, "is for --nnodes of 2 or more"
            )
        return ("--standalone",)
    if options.rdzv_endpoint is None:
        raise InputError(
            "--rdzv-endpoint", "", f"--nnodes {options.nnodes} needs the HOST:PORT where they meet"
        )
    if (
        not _ENDPOINT.fullmatch(options.rdzv_endpoint)
        or int(options.rdzv_endpoint.rpartition(":")[2]) > 65535
    ):
        raise InputError(
            "--rdzv-endpoint", options.rdzv_endpoint, "written HOST:PORT, with a port up to 65535"
        )
    if not _RUN_ID.fullmatch(options.rdzv_id):
        raise InputError("--rdzv-id", options.rdzv_id, "letters, digits, '.', '_' and '-' only")
    return (
        *("--nnodes", str(options.nnodes)),
        *("--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", options.rdzv_endpoint),
        *("--rdzv-id", options.rdzv_id),
    )
