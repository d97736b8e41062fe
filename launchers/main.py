"""The `longrope` command: imports subcommands when called, and turns errors into exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from launchers.command_table import COMMANDS
from launchers.plugins import load_plugins
from megatron_longrope.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    InterruptedRunError,
    LongRopeError,
    MissingDependencyError,
)
from megatron_longrope.version import __version__

_OWN_PACKAGES = {"launchers", "megatron_longrope", "data_prep", "checkpoints_tools"}


class LongRopeGroup(click.Group):
    """A click group that imports subcommands when called and prints an error as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the subcommands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Returns the subcommand, imported now, after the plug-ins; None for an unknown name."""
        if name not in COMMANDS:
            return None
        load_plugins()  # before the command's options list what there is to choose from
        module = importlib.import_module(f"launchers.commands.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes names and help texts from the table, so that `--help` imports no subcommand."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Runs the command line and exits.

        The exit code is 0 (done), 1 (failed), 2 (bad input) or 75 (interrupted, but resumable).
        """
        extra.pop("standalone_mode", None)
        with _sigterm_as_interrupt():
            try:
                exit_code = super().main(
                    args, prog_name or "longrope", standalone_mode=False, **extra
                )
                sys.stdout.flush()
            except click.exceptions.NoArgsIsHelpError as error:
                error.show()
                exit_code = EXIT_BAD_INPUT
            except (
                click.ClickException,
                LongRopeError,
                click.Abort,
                ModuleNotFoundError,
                OSError,
            ) as error:
                exit_code = _report(error)
        sys.exit(exit_code or 0)


def _report(error: Exception) -> int:
    """Prints `error` as one line and returns its exit code; raises again what is a bug of ours."""
    if isinstance(error, OSError):
        return _after_closed_pipe(error)
    if isinstance(error, click.Abort):
        interrupted = isinstance(error.__cause__, KeyboardInterrupt)
        error = (
            InterruptedRunError("interrupted; the same command goes on from what is on disk")
            if interrupted
            else error
        )
    if isinstance(error, ModuleNotFoundError):
        if (error.name or "").partition(".")[0] in _OWN_PACKAGES:
            raise error
        error = MissingDependencyError(
            f"Python package {error.name} is not installed; see `longrope doctor`"
        )
    code = getattr(error, "exit_code", EXIT_FAILED)
    click.echo(f"{_rank_prefix()}{_one_line(error)}", err=True)
    return int(code)


def _one_line(error: Exception) -> str:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text = (
            f"{error.ctx.command_path}: {error.format_message()} (see {error.ctx.command_path} "
            "--help)"
        )
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _rank_prefix() -> str:
    """Returns the rank where torchrun started several processes, as their lines arrive mixed."""
    rank = os.environ.get("RANK")
    return f"[rank {rank}] " if rank is not None else ""


def _after_closed_pipe(error: OSError) -> int:
    """Returns the exit code after the reader of our output has gone, as in `longrope … | head`.

    Raises any other `error` again.
    """
    if error.errno != errno.EPIPE:
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM stop this process as Ctrl-C does, clean-up included.

    Processes forked from this one die of SIGTERM as usual: the clean-up is not theirs.
    """
    owner = os.getpid()

    def stop(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@click.group(
    cls=LongRopeGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 110,
    },
)
@click.version_option(
    __version__, "--version", prog_name="longrope", message="%(prog)s %(version)s"
)
def main() -> None:
    """Extend the context window of a RoPE language model with LongRoPE, on megatron-core.

    Begin with `longrope doctor` (what this machine can do) and `longrope demo` (the whole method on
    a tiny model). `longrope COMMAND --help` explains each command.

    Lengths are in tokens and read as 262144, 256k or 2M (k = 1024, M = 1024·1024). Exit codes: 0
    done, 1 failed, 2 bad input, 75 interrupted: the same command goes on where it stopped.
    """
    # Deprecations inside the pinned libraries: a person at the command line cannot mend them.
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(megatron|torch)\.")


@main.result_callback()
def _discard_result(result: Any) -> None:
    """Drops the return value of a subcommand, which click would take for an exit code."""


if __name__ == "__main__":
    main()
