"""Options that take several values in a row, as a shell expands patterns: `--text *.py`."""

from __future__ import annotations

import click

_ONE_VALUE = {"--set"}
"""Repeatable options that take exactly one value each time."""


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
