"""Where the numbers come from: seeds, and numbers written the way people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def found_seeds(config: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """Returns dotted key → value of every whole-number setting called seed, at any depth of a
    recipe."""
    seeds: dict[str, int] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            seeds |= found_seeds(value, f"{path}.")
        elif (str(key) == "seed" or str(key).endswith("_seed")) and isinstance(value, int):
            seeds[path] = value
    return seeds


def number_text(value: object) -> str:
    """Returns 3,712,000 for whole numbers, 4 significant digits for others, text as it is, a dash
    for None: a number that was not finite."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "∞" if value == math.inf else str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"
