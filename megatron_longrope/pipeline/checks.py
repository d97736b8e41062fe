"""The questions any extension should answer with numbers, and the bounds a good one meets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megatron_longrope.artifacts.summaries import Check
from megatron_longrope.config import format_length
from megatron_longrope.evaluation import aggregate
from megatron_longrope.pipeline.measuring import RunModels

Rows = Sequence[Mapping[str, Any]]

LAST_QUARTER_RATIO = 1.10
SHORT_RATIO = 1.02
PASSKEY_INSIDE, PASSKEY_BEYOND, PASSKEY_EXTENDED = 0.95, 0.10, 0.90


def run_checks(perplexity: Rows, passkey: Rows, models: RunModels, window: int) -> list[Check]:
    """Returns every check the rows have numbers for: name, text, value, bound, met."""
    checks = [_search_beats_baselines(perplexity, models), _last_quarter(perplexity, models)]
    checks += _short_inputs(perplexity, window) + _passkey(passkey, window)
    return checks


def _check(name: str, text: str, value: float, bound: float, met: bool) -> Check:
    return Check(name=name, text=text, value=round(value, 4), bound=round(bound, 4), met=bool(met))


def _plain(rows: Rows, **wanted: Any) -> list[Mapping[str, Any]]:
    """Rows scored from the first token on, with these labels."""
    return [
        row
        for row in rows
        if row.get("protocol", "first-token") == "first-token"
        and all(row[k] == v for k, v in wanted.items())
    ]


def _one(rows: Iterable[Mapping[str, Any]], last_quarter: bool = False) -> float:
    values = list(aggregate(rows, ("model",), last_quarter=last_quarter).values())
    return values[0] if values else math.nan


def _search_beats_baselines(rows: Rows, models: RunModels) -> Check:
    """Without fine-tuning, on documents not searched on."""
    length = models.first.target_length
    at_target = _plain(rows, model="base", length=length)
    by_method = aggregate(at_target, ("method", "temperature"))
    ours = by_method[("longrope", "searched")]
    others = {
        key: value
        for key, value in by_method.items()
        if key[0] != "longrope" and math.isfinite(value)
    }
    (name, temperature), best = min(others.items(), key=lambda item: item[1])
    text = (
        f"perplexity at {format_length(length)} without fine-tuning; best other: {name}, "
        f"{temperature} temperature"
    )
    return _check("search-beats-baselines", text, ours, best, ours < best)


def _last_quarter(rows: Rows, models: RunModels) -> Check:
    """At the target, over the last quarter of the context."""
    length = models.steps[-1].target_length
    ours = _one(_plain(rows, model="extended", method="longrope", length=length), last_quarter=True)
    inside = [
        row
        for row in rows
        if row["model"] == "base" and row.get("protocol") == "sliding" and row["length"] == length
    ]
    base = _one(inside, last_quarter=True)
    text = (
        f"perplexity over the last quarter of {format_length(length)}; bound: 1.10 × the base "
        "inside its window"
    )
    return _check(
        "last-quarter", text, ours, LAST_QUARTER_RATIO * base, ours <= LAST_QUARTER_RATIO * base
    )


def _short_inputs(rows: Rows, window: int) -> list[Check]:
    """What the extension costs inside the old window, against the base and against the control."""
    checks = []
    lengths = sorted(
        {row["length"] for row in _plain(rows, model="extended") if row["length"] <= window}
    )
    for length in lengths:
        ours = _one(_plain(rows, model="extended", method="longrope", length=length))
        for other in ("base", "control"):
            theirs = _one(
                _plain(rows, model=other, method="none", temperature="own", length=length)
            )
            if math.isfinite(theirs):
                text = f"perplexity at {format_length(length)}; bound: 1.02 × the {other} model's"
                checks.append(
                    _check(
                        "short-inputs",
                        text,
                        ours,
                        SHORT_RATIO * theirs,
                        ours <= SHORT_RATIO * theirs,
                    )
                )
    return checks


def _passkey(rows: Rows, window: int) -> list[Check]:
    """What the base finds inside and beyond its window, and the extended model at every length."""
    base = _accuracy(rows, "base")
    extended = _accuracy(rows, "extended")
    inside = [value for length, value in base.items() if length <= window]
    beyond = [value for length, value in base.items() if length >= 2 * window]
    checks = []
    if inside:
        checks.append(
            _check(
                "base-passkeys-inside",
                "passkeys found by the base inside its window",
                min(inside),
                PASSKEY_INSIDE,
                min(inside) >= PASSKEY_INSIDE,
            )
        )
    if beyond:
        checks.append(
            _check(
                "base-passkeys-beyond",
                "passkeys found by the base from twice its window on",
                max(beyond),
                PASSKEY_BEYOND,
                max(beyond) <= PASSKEY_BEYOND,
            )
        )
    if extended:
        worst = min(extended, key=lambda length: extended[length])
        text = f"passkeys found by the extended model, worst length ({format_length(worst)})"
        checks.append(
            _check(
                "passkeys",
                text,
                extended[worst],
                PASSKEY_EXTENDED,
                extended[worst] >= PASSKEY_EXTENDED,
            )
        )
    return checks


def _accuracy(rows: Rows, model: str) -> dict[int, float]:
    """Share of keys found per length, over all depths."""
    found: dict[int, list[int]] = {}
    for row in rows:
        if row["model"] == model:
            counts = found.setdefault(row["length"], [0, 0])
            counts[0] += row["correct"]
            counts[1] += row["trials"]
    return {length: correct / trials for length, (correct, trials) in found.items()}
