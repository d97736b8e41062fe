"""The section of the page about where numbers come from: seeds, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def found_seeds(config: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """Returns the seeds in a recipe, at any depth, by dotted key.

    >>> found_seeds({"seed": 1, "search": {"seed": 2}})
    {'seed': 1, 'search.seed': 2}
    """
    seeds: dict[str, int] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            seeds |= found_seeds(value, f"{path}.")
        elif (str(key) == "seed" or str(key).endswith("_seed")) and isinstance(value, int):
            seeds[path] = value
    return seeds


def number_text(value: object) -> str:
    """Returns a value as people read it: thousands separated, or 4 significant digits.

    Text stays as it is, and None, which stands for a number that was not finite, becomes a dash.

    >>> number_text(3712000), number_text(0.123456), number_text(None)
    ('3,712,000', '0.1235', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "∞" if value == math.inf else str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"
