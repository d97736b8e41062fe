"""Tables of plug-ins by name, which command line, recipes and reports look names up in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from megatron_longrope.errors import InputError

PluginT = TypeVar("PluginT")


class Registry(Mapping[str, PluginT], Generic[PluginT]):
    """Plug-ins of one kind by name, in the order in which they were registered.

    Built-in plug-ins and those of other packages are registered in the same way.

    >>> METHODS: Registry[str] = Registry("method")
    >>> METHODS.register("pi", "position interpolation")
    'position interpolation'
    >>> list(METHODS)
    ['pi']
    >>> METHODS["yarn"]
    Traceback (most recent call last):
    ...
    megatron_longrope.errors.InputError: method=yarn: one of pi
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._plugins: dict[str, PluginT] = {}

    def register(self, name: str, plugin: PluginT) -> PluginT:
        """Adds `plugin` under `name`, which must be new, and returns it."""
        assert name not in self._plugins, f"{self.kind} {name} is registered already"
        self._plugins[name] = plugin
        return plugin

    def remove(self, name: str) -> None:
        """Removes a plug-in, such as one that a test has added."""
        del self._plugins[name]

    def __getitem__(self, name: str) -> PluginT:
        """Returns the plug-in of this name; raises InputError that lists the known names."""
        try:
            return self._plugins[name]
        except KeyError:
            raise InputError(self.kind, name, f"one of {', '.join(self._plugins)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(self._plugins)

    def __len__(self) -> int:
        return len(self._plugins)
