"""Plug-ins that other packages bring along: methods, searchers, tasks, architectures."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from megatron_longrope.errors import InputError

GROUP = "megatron_longrope.plugins"
"""Entry points of a package: each names a module, which registers what it brings when imported."""


@cache
def load_plugins() -> None:
    """Imports every installed plug-in, once; raises InputError that names one which fails.

    A package brings a plug-in along by a few lines of its pyproject.toml:

        [project.entry-points."megatron_longrope.plugins"]
        my-method = "my_package.my_method"
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            rule = f"{entry.value} cannot be imported: {type(error).__name__}: {error}"
            raise InputError("plug-in", entry.name, rule) from error
