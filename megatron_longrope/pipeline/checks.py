"""The questions any extension should answer with numbers, and the bounds a good one meets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from megatron_longrope.artifacts.results import EvaluationRows, aggregate
from megatron_longrope.artifacts.rows import PerplexityRow, is_untouched
from megatron_longrope.artifacts.summaries import Check
from megatron_longrope.config import format_length
from megatron_longrope.evaluation.tasks import TASKS
from megatron_longrope.pipeline.measuring import RunModels

LAST_QUARTER_RATIO = 1.10
SHORT_RATIO = 1.02


def run_checks(
    rows: EvaluationRows, tasks: Iterable[str], models: RunModels, window: int
) -> list[Check]:
    """Returns every check the rows have numbers for: perplexity's, then those of the `tasks`."""
    from_first = [row for row in rows.perplexity if row.protocol == "first-token"]
    return [
        *_search_beats_baselines(from_first, models),
        *_last_quarter(rows.perplexity, models),
        *_short_inputs(from_first, window),
        *(check for name in tasks for check in TASKS[name].checks(rows, window)),
    ]


def _one(rows: Iterable[PerplexityRow], *, last_quarter: bool = False) -> float | None:
    """Perplexity over all rows; None where there are none."""
    return aggregate(rows, lambda row: None, last_quarter=last_quarter).get(None)


def _search_beats_baselines(rows: Sequence[PerplexityRow], models: RunModels) -> list[Check]:
    """Without fine-tuning, on documents not searched on."""
    length = models.first.target_length
    at_target = [row for row in rows if (row.model, row.length) == ("base", length)]
    by_method = aggregate(at_target, lambda row: (row.method, row.attention_factor))
    ours = by_method.pop(("longrope", "searched"), None)
    others = {key: value for key, value in by_method.items() if key[0] != "longrope"}
    if ours is None or not others:
        return []
    (name, source), best = min(others.items(), key=lambda item: item[1])
    text = (
        f"perplexity at {format_length(length)} without fine-tuning; best other: {name}, "
        f"{source} attention factor"
    )
    return [Check.of("search-beats-baselines", text, ours, best, met=ours < best)]


def _last_quarter(rows: Sequence[PerplexityRow], models: RunModels) -> list[Check]:
    """At the target, over the last quarter of the context."""
    length = models.steps[-1].target_length
    at_target = [row for row in rows if row.length == length]
    ours = _one((row for row in at_target if _is_extended(row)), last_quarter=True)
    inside = (row for row in at_target if (row.model, row.protocol) == ("base", "sliding"))
    base = _one(inside, last_quarter=True)
    if ours is None or base is None:
        return []
    text = (
        f"perplexity over the last quarter of {format_length(length)}; bound: 1.10 × the base "
        "inside its window"
    )
    return [_within("last-quarter", text, ours, LAST_QUARTER_RATIO * base)]


def _short_inputs(rows: Sequence[PerplexityRow], window: int) -> list[Check]:
    """What the extension costs inside the old window, against the base and against the control."""
    checks = []
    for length in sorted({row.length for row in rows if row.length <= window}):
        at_length = [row for row in rows if row.length == length]
        ours = _one(row for row in at_length if _is_extended(row))
        untouched = aggregate(
            (
                row
                for row in at_length
                if is_untouched(row.method) and row.attention_factor == "own"
            ),
            lambda row: row.model,
        )
        for other in ("base", "control"):
            if ours is not None and other in untouched:
                text = f"perplexity at {format_length(length)}; bound: 1.02 × the {other} model's"
                checks.append(_within("short-inputs", text, ours, SHORT_RATIO * untouched[other]))
    return checks


def _is_extended(row: PerplexityRow) -> bool:
    return (row.model, row.method, row.protocol) == ("extended", "longrope", "first-token")


def _within(name: str, text: str, value: float, bound: float) -> Check:
    """A bound that is not a finite number bounds nothing: only a finite value meets it."""
    return Check.of(name, text, value, bound, met=math.isfinite(value) and value <= bound)
