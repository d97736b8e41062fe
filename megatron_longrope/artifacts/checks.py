"""A check: a question that any run should answer with a number, and the bound a good run meets."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict


class Check(BaseModel):
    """One check with its measured value, its bound, and whether it was met; a wrong type is an
    error, unknown keys are ignored. Numbers that are not finite are words."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    name: str
    text: str
    value: float | str
    bound: float | str
    met: bool

    @classmethod
    def of(cls, name: str, text: str, value: float, bound: float, *, met: bool) -> Check:
        """Returns the check of two numbers, rounded to four decimals for a reader."""
        return cls(name=name, text=text, value=_shown(value), bound=_shown(bound), met=met)


def _shown(value: float) -> float | str:
    return round(value, 4) if math.isfinite(value) else "∞"
