"""Data preparation on the ranks of MPI."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.job import Job, check_arguments, check_positive
from megatron_longrope.errors import InputError
from megatron_longrope.runtime.machine_report import find_program


@dataclass(frozen=True)
class MpiOptions:
    """Ranks in all, and a file that names the hosts (one per line), without which all run here."""

    ranks: int
    hostfile: Path | None = None


def mpi_job(options: MpiOptions, arguments: Sequence[str]) -> Job:
    """Returns the job; raises InputError for options or arguments that cannot work.

    `python -m mpi4py` runs our command such that one rank's failure ends all of them instead of
    leaving them waiting.
    """
    command = check_arguments(arguments, check_positive("--ranks", options.ranks), "mpi")
    hosts: tuple[str, ...] = ()
    if options.hostfile is not None:
        if not options.hostfile.is_file():
            raise InputError("--hostfile", options.hostfile, "no such file")
        hosts = ("-hostfile", str(options.hostfile.resolve()))
    starter = (find_program("mpiexec") or "mpiexec", "-n", str(options.ranks), *hosts)
    return Job((*starter, sys.executable, "-m", "mpi4py", "-m", "launchers.main", *command))
