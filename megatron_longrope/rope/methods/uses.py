"""The scaling methods that serve a purpose, such as starting a search or being a baseline.

The registry is asked on every call, so that methods registered later count too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from megatron_longrope.rope.methods.base import METHODS, RopeMethod


def closed_form_methods() -> tuple[str, ...]:
    """Returns the names that `--method` takes; any other word there names a factor set."""
    return _names(lambda kind: kind.is_closed_form)


def baseline_kinds() -> tuple[type[RopeMethod], ...]:
    """Returns the methods that every comparison evaluates."""
    return tuple(kind for kind in METHODS.values() if kind.is_baseline)


def search_starts() -> tuple[str, ...]:
    """Returns the names of the methods that a search may start from."""
    return _names(lambda kind: kind.starts_searches)


def default_search_starts() -> tuple[str, ...]:
    """Returns the names of the methods that a search starts from by default.

    They are the baselines among those it may start from.
    """
    return _names(lambda kind: kind.starts_searches and kind.is_baseline)


def stops_pairs(name: str) -> bool:
    """Returns whether a start of a search brings some pairs to a standstill."""
    return METHODS[name].stops_pairs


def second_interpolations() -> tuple[str, ...]:
    """Returns the names of the methods that may be applied on top of fine-tuned factors."""
    return _names(lambda kind: kind.goes_on_tuned)


def default_second_interpolations() -> tuple[str, ...]:
    """Returns the names of the methods that every second search is compared with.

    They are the baselines among those that may be applied on top of fine-tuned factors.
    """
    return _names(lambda kind: kind.goes_on_tuned and kind.is_baseline)


def _names(serves: Callable[[type[RopeMethod]], bool]) -> tuple[str, ...]:
    return tuple(name for name, kind in METHODS.items() if serves(kind))


def _one_of(names: Callable[[], tuple[str, ...]], name: str) -> str:
    """Returns `name`; raises ValueError, as pydantic's validators do, with the allowed names."""
    if name not in names():
        raise ValueError(f"one of {', '.join(names())}")
    return name


SearchStart = Annotated[str, AfterValidator(partial(_one_of, search_starts))]
"""A config field that holds the name of a method a search may start from."""
SecondInterpolation = Annotated[str, AfterValidator(partial(_one_of, second_interpolations))]
"""A config field that holds the name of a method for use on top of fine-tuned factors."""
