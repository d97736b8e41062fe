"""A command line that is ready to start, with its arguments and its environment."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launchers.command_table import COMMANDS
from megatron_longrope.errors import InputError, MissingDependencyError


@dataclass(frozen=True)
class Job:
    """A command line that is ready to start.

    >>> Job(("echo", "a b"), {"OMP_NUM_THREADS": "1"}).shell_line()
    "OMP_NUM_THREADS=1 echo 'a b'"
    """

    argv: tuple[str, ...]
    """The program and its arguments, not quoted for any shell."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that are added to the caller's."""

    def shell_line(self) -> str:
        """Returns a line for a POSIX shell that starts exactly this job."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.argv)])

    def replace_process(self) -> None:
        """Replaces this process by the job, so that signals and exit codes are the job's own.

        Raises MissingDependencyError where the program is not installed.
        """
        sys.stdout.flush()
        try:
            os.execvpe(self.argv[0], list(self.argv), {**os.environ, **self.environment})
        except FileNotFoundError as error:
            raise MissingDependencyError(
                f"{self.argv[0]} is not installed; see `longrope doctor`"
            ) from error


def check_arguments(arguments: Sequence[str], processes: int) -> tuple[str, ...]:
    """Returns the `longrope` arguments to start; raises InputError for what cannot run this way.

    A command that cannot share its work is refused with more than one process: each process would
    do all of it.
    """
    if not arguments:
        raise InputError(
            "ARGS",
            "",
            "give the longrope arguments to start after --, such as: -- extend recipe.yaml",
        )
    name = arguments[0]
    if name not in COMMANDS or name == "launch":
        raise InputError(
            "ARGS",
            name,
            f"not a command to start; one of {', '.join(n for n in COMMANDS if n != 'launch')}",
        )
    if processes > 1 and not COMMANDS[name].spreads:
        able = ", ".join(n for n, entry in COMMANDS.items() if entry.spreads)
        rule = f"each of {processes} processes would do all of it; commands that share work: {able}"
        raise InputError("ARGS", name, rule)
    return tuple(arguments)


def check_positive(name: str, value: int) -> int:
    """Returns `value`; raises InputError unless it is at least 1."""
    if value < 1:
        raise InputError(name, value, "at least 1")
    return value


def max_connections() -> str:
    """Returns CUDA_DEVICE_MAX_CONNECTIONS as exported by the caller, else "1".

    megatron-core overlaps communication of tensor and sequence parallelism with computation, which
    needs kernels to start in the order they were issued: one hardware queue. CUDA reads the
    variable once, when the process starts, so that a launcher must set it.
    """
    return os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def threads_per_process(processes: int) -> str:
    """Returns OMP_NUM_THREADS as exported by the caller, else this machine's cores per process."""
    return os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
