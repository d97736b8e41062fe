"""Lengths in tokens as people write them: 262144, 256k or 2M, in binary multiples."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from megatron_longrope.errors import InputError

_PATTERN = re.compile(r"(\d+)([kKmM]?)")
_MULTIPLES = {"": 1, "k": 1 << 10, "m": 1 << 20}


def parse_length(value: int | str, field: str = "length") -> int:
    """Returns a length in tokens; raises InputError, which names `field`, for anything else.

    >>> parse_length("256k"), parse_length(4096)
    (262144, 4096)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _PATTERN.fullmatch(str(value).strip())
    if isinstance(value, bool) or match is None or int(match[1]) == 0:
        raise InputError(
            field, value, "a length is a positive number of tokens such as 262144, 256k or 2M"
        )
    return int(match[1]) * _MULTIPLES[match[2].lower()]


def format_length(tokens: int) -> str:
    """Returns the shortest exact spelling of a length.

    >>> format_length(262144), format_length(1000)
    ('256k', '1000')
    """
    for suffix, multiple in (("M", 1 << 20), ("k", 1 << 10)):
        if tokens and tokens % multiple == 0:
            return f"{tokens // multiple}{suffix}"
    return str(tokens)


def _before(value: object) -> object:
    """Returns the tokens of a length; raises ValueError, as pydantic's validators do."""
    try:
        return parse_length(value) if isinstance(value, int | str) else value
    except InputError as error:
        raise ValueError(error.rule) from error


Length = Annotated[int, BeforeValidator(_before), Field(gt=0)]
"""A config field that holds a length in tokens and accepts `256k` and `2M` too."""
