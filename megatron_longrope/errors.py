"""The errors that this project raises on purpose, each with its exit code."""

from __future__ import annotations

EXIT_FAILED = 1
"""Exit code of a run that failed."""
EXIT_BAD_INPUT = 2
"""Exit code for input that is wrong."""
EXIT_RESUMABLE = 75
"""Exit code of a run that the same command goes on with (EX_TEMPFAIL of sysexits.h)."""


class LongRopeError(Exception):
    """Base class of every error raised on purpose; its text is one line for the user."""

    exit_code = EXIT_FAILED


class InputError(LongRopeError):
    """Raised where something the user gave is wrong: the field, its value and the rule it breaks.

    >>> raise InputError("context_parallel", 3, "must divide the number of ranks, 8")
    Traceback (most recent call last):
    ...
    megatron_longrope.errors.InputError: context_parallel=3: must divide the number of ranks, 8
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field, self.value, self.rule = field, value, rule
        super().__init__(f"{field}={value}: {rule}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Returns how to rebuild the error from pickle, by which it travels between ranks.

        Exception's own way would call the constructor with the message alone.
        """
        return type(self), (self.field, str(self.value), self.rule)


class MissingDependencyError(LongRopeError):
    """Raised where a command needs a package or program that is not installed.

    The text says which one, and how to get it.
    """

    exit_code = EXIT_BAD_INPUT


class InterruptedRunError(LongRopeError):
    """Raised where a run was asked to stop; the same command goes on with what is on disk."""

    exit_code = EXIT_RESUMABLE
