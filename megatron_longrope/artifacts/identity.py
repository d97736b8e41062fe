"""Comparing the identity of a search with the identity stored in its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_longrope.errors import InputError

_SHOWN = 60
"""Most characters of a value in an error."""


def check_same(stored: Mapping[str, Any], present: Mapping[str, Any], source: str) -> None:
    """Raises InputError with the dotted name of the first key whose values differ.

    `source` names the file that `stored` was read from.

    >>> check_same({"cma": {"sigma": 0.1}}, {"cma": {"sigma": 0.2}}, "journal")
    Traceback (most recent call last):
    ...
    megatron_longrope.errors.InputError: cma.sigma=0.2: differs from the 0.1 of the journal; ...
    """
    difference = _first_difference(stored, present, ())
    if difference is not None:
        path, old, new = difference
        raise InputError(
            path,
            _short(new),
            f"differs from the {_short(old)} of the {source}; it cannot go on from there",
        )


def _first_difference(
    stored: Mapping[str, Any], present: Mapping[str, Any], path: tuple[str, ...]
) -> tuple[str, object, object] | None:
    """Returns the dotted key, the stored and the present value; None where all are the same."""
    for key in {**present, **stored}:
        old, new = stored.get(key, "(missing)"), present.get(key, "(missing)")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = _first_difference(old, new, (*path, key))
            if inner is not None:
                return inner
        elif old != new or type(old) is not type(new):
            return ".".join((*path, key)), old, new
    return None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
