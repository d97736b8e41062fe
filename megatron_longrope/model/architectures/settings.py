"""Checked reading of single settings of a Hugging Face config, shared by the families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_longrope.errors import InputError

Config = Mapping[str, Any]
"""A Hugging Face `config.json`, whose values may be anything."""


def whole_number(config: Config, key: str, at_most: int = 1 << 40) -> int:
    """Returns a setting that must be a positive whole number; raises InputError otherwise."""
    value = config.get(key)
    if not isinstance(value, int) or not is_count(value) or value > at_most:
        raise InputError(f"config.{key}", value, f"must be a whole number from 1 to {at_most}")
    return value


def small_number(config: Config, key: str, default: float) -> float:
    """Returns a setting between 0 and 1, `default` where it is absent; raises InputError."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise InputError(f"config.{key}", value, "must be a number between 0 and 1")
    return float(value)


def flag(config: Config, key: str, default: bool) -> bool:
    """Returns a setting that is true or false, `default` where it is absent; raises InputError."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"config.{key}", value, "must be true or false")
    return default if value is None else value


def is_count(value: object) -> bool:
    """Returns whether `value` is a whole number above 0; true and false are not numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def short(value: object) -> str:
    """Returns a value as text, short enough for one line of an error."""
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
