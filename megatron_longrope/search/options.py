"""Options of `longrope search` that a searcher declares for its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SettingOption:
    """An option of `longrope search` that changes settings of the searcher that declares it.

    Several searchers may declare the same flag, each with a help text of its own.

    >>> SettingOption("--passes", "over the documents", lambda n: {"descent": {"passes": n}}).key
    'passes'
    """

    flag: str
    """The option as it is typed, such as `--ramp-rounds`."""
    help: str
    """A clause that follows the searcher's name in the help text, with the default in brackets."""
    to_settings: Callable[[int], Mapping[str, object]]
    """Returns the settings that a value of the option stands for, as a recipe would hold them."""
    at_least: int = 1
    """The smallest value allowed."""

    @property
    def key(self) -> str:
        """Name of the parsed option, such as `ramp_rounds`."""
        return self.flag.removeprefix("--").replace("-", "_")


def merge_settings(base: Mapping[str, object], more: Mapping[str, object]) -> dict[str, object]:
    """Returns `base` with the values of `more` in their places, at every depth.

    >>> merge_settings({"descent": {"passes": 24, "rate": 0.02}}, {"descent": {"passes": 8}})
    {'descent': {'passes': 8, 'rate': 0.02}}
    """
    merged = dict(base)
    for key, value in more.items():
        known = merged.get(key)
        both_groups = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[key] = merge_settings(known, value) if both_groups else value  # type: ignore[arg-type]
    return merged
