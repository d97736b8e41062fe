"""The few kinds of error a person can meet, each with its exit code."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_RESUMABLE = 75


class LongRopeError(Exception):
    """Base of every error this project raises on purpose; its text is one line for a person."""

    exit_code = EXIT_FAILED


class InputError(LongRopeError):
    """Something a person gave is wrong: the field, the value and the rule it breaks."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field, self.value, self.rule = field, value, rule
        super().__init__(f"{field}={value}: {rule}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Errors travel between ranks."""
        return type(self), (self.field, str(self.value), self.rule)


class MissingDependencyError(LongRopeError):
    """A package or program this command needs is not installed; the text says which and how to get
    it."""

    exit_code = EXIT_BAD_INPUT


class InterruptedRunError(LongRopeError):
    """The run was asked to stop; what is on disk lets the same command go on."""

    exit_code = EXIT_RESUMABLE
