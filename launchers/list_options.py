"""Kinds of options: several values in a row (`--text *.py`), and words or a number."""

from __future__ import annotations

import math

import click

_ONE_VALUE = {"--set"}
"""Repeatable options that take exactly one value each time."""


class NumberOr(click.ParamType):  # type: ignore[type-arg]
    """One of some words, or a positive number."""

    name = "word or number"

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Returns the choices as `--help` shows them."""
        return f"[{'|'.join(self.words)}|NUMBER]"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | float:
        """Returns the word or the number; fails for anything else."""
        if value in self.words:
            return value
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            self.fail(f"{value!r} is none of {', '.join(self.words)}, nor a positive number")
        return number


class ListOptionsCommand(click.Command):
    """A command where `--text a b` means `--text a --text b` for repeatable options.

    A command's argument must stand before such an option, or it is taken for one more value.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeats the option's name before each further value, then parses as click does."""
        repeatable = {
            name
            for param in self.params
            if getattr(param, "multiple", False)
            for name in param.opts
            if name not in _ONE_VALUE
        }
        expanded: list[str] = []
        option, num_values = "", 0
        for arg in args:
            if arg.startswith("-") and len(arg) > 1:
                option, num_values = arg if arg in repeatable else "", 0
            elif option:
                num_values += 1
                if num_values > 1:
                    expanded.append(option)
            expanded.append(arg)
        return super().parse_args(ctx, expanded)
