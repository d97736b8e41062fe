"""Reads the space of a search back from what its journal says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from megatron_longrope.search import CriticalSpace, OpenSpace, SearchSpace

_KINDS: tuple[type[SearchSpace], ...] = (SearchSpace, OpenSpace, CriticalSpace)


def space_from_json(data: Mapping[str, Any]) -> SearchSpace:
    """Returns the space whose `to_json` wrote `data`: of the class that has these fields.

    Raises KeyError where no class of spaces has them.

    >>> space = OpenSpace.extension(num_pairs=4, scale=8)
    >>> space_from_json(space.to_json()) == space
    True
    """
    kinds = {frozenset(field.name for field in fields(kind) if field.init): kind for kind in _KINDS}
    return kinds[frozenset(data)](**data)
