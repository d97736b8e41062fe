"""Command-line options that a searcher declares for its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SettingOption:
    """An option of `longrope search` that changes settings of the searcher that declares it.

    Searchers may share an option: each says in its own words what it means there.

    >>> SettingOption("--passes", "over the documents", lambda n: {"descent": {"passes": n}}).key
    'passes'
    """

    flag: str
    """Such as `--ramp-rounds`."""
    help: str
    """A clause that follows the searcher's name, and the default in brackets."""
    to_settings: Callable[[int], Mapping[str, object]]
    """Gives the settings that a value of the option stands for, as a recipe would hold them."""
    at_least: int = 1

    @property
    def key(self) -> str:
        """Name of the parsed option, such as `ramp_rounds`."""
        return self.flag.removeprefix("--").replace("-", "_")


def merge_settings(base: Mapping[str, object], more: Mapping[str, object]) -> dict[str, object]:
    """Returns `base` with the values of `more` in their places, groups within groups included."""
    merged = dict(base)
    for key, value in more.items():
        known = merged.get(key)
        both_groups = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[key] = merge_settings(known, value) if both_groups else value  # type: ignore[arg-type]
    return merged
