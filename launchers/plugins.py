"""Loads plug-ins of other packages: methods, searchers, evaluation tasks and architectures."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from megatron_longrope.errors import InputError

GROUP = "megatron_longrope.plugins"
"""The group of entry points that name plug-in modules; a module registers itself when imported."""


@cache
def load_plugins() -> None:
    """Imports every installed plug-in, once; raises InputError that names one which fails.

    A package announces a plug-in in its pyproject.toml:

        [project.entry-points."megatron_longrope.plugins"]
        my-method = "my_package.my_method"
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            rule = f"{entry.value} cannot be imported: {type(error).__name__}: {error}"
            raise InputError("plug-in", entry.name, rule) from error
