"""Errors that name the place in a recipe at which a setting stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megatron_longrope.errors import InputError


@contextmanager
def at(place: str) -> Iterator[None]:
    """Puts `place` before the field of an InputError raised inside.

    >>> with at("extension.0.search"):
    ...     raise InputError("critical_pair", 99, "lies between 1 and 31")
    Traceback (most recent call last):
    ...
    megatron_longrope.errors.InputError: extension.0.search.critical_pair=99: lies between 1 and 31
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}.{error.field}", error.value, error.rule) from error
