"""A command line that is ready to start: its arguments, its environment, and how it reads in a
shell."""

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
    """Arguments, never a shell's text, and the environment variables added to the caller's."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def shell_line(self) -> str:
        """Returns one line for a POSIX shell that starts exactly this."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.argv)])

    def replace_process(self) -> None:
        """Becomes this job, so that signals and exit codes are its own; raises
        MissingDependencyError."""
        sys.stdout.flush()
        try:
            os.execvpe(self.argv[0], list(self.argv), {**os.environ, **self.environment})
        except FileNotFoundError as error:
            raise MissingDependencyError(
                f"{self.argv[0]} is not installed; see `longrope doctor`"
            ) from error


def check_arguments(arguments: Sequence[str], processes: int) -> tuple[str, ...]:
    """Returns the `longrope` arguments to start; raises InputError for what cannot run this way.

    A command whose work does not spread is refused with more than one process: each would do the
    whole of it.
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
        rule = (
            f"each of {processes} processes would do the whole of it; commands that spread: {able}"
        )
        raise InputError("ARGS", name, rule)
    return tuple(arguments)


def check_positive(name: str, value: int) -> int:
    """Returns `value`; raises InputError unless it is at least 1."""
    if value < 1:
        raise InputError(name, value, "at least 1")
    return value


def max_connections() -> str:
    """Returns CUDA_DEVICE_MAX_CONNECTIONS as exported by the caller, else 1, which orders TP and SP
    overlap.

    It takes effect only where it is set before the process starts: that is a launcher's work.
    """
    return os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def threads_per_process(processes: int) -> str:
    """Returns OMP_NUM_THREADS as exported by the caller, else this machine's cores over
    `processes`, at least 1."""
    return os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
