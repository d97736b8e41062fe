"""The questions that any extension should answer with numbers, and the bounds of a good one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from megatron_longrope.artifacts.results import EvaluationRows, aggregate, of_the_product
from megatron_longrope.artifacts.rows import PerplexityRow, is_untouched
from megatron_longrope.artifacts.summaries import Check, ExportSummary
from megatron_longrope.config import format_length
from megatron_longrope.evaluation.tasks import TASKS
from megatron_longrope.pipeline.measuring import RunModels
from megatron_longrope.pipeline.searching import SEARCHED_RAMP

LAST_QUARTER_RATIO = 1.00
"""Most perplexity at the end of the target length, over that of the base inside its window.

Above it, cutting inputs to the old window serves better than the extension."""
EXPORT_DIFFERENCE = 1e-4
"""Most nats between a token's loss in transformers and in our model, both in float32."""
SHORT_RATIO = 1.02
"""Most perplexity inside the old window, over that of the base and of the control."""


def run_checks(
    rows: EvaluationRows,
    tasks: Iterable[str],
    models: RunModels,
    window: int,
    export: ExportSummary | None = None,
) -> list[Check]:
    """Returns every check that there are numbers for: of perplexity, the `tasks`, the export.

    Args:
        rows: Everything that was measured.
        tasks: Names of the tasks that were measured.
        models: The checkpoints and factors of the run.
        window: Context length of the pretrained model in tokens.
        export: The exported folders; None without an export.
    """
    from_first = [row for row in rows.perplexity if row.protocol == "first-token"]
    return [
        *_search_beats_baselines(from_first, models),
        *_last_quarter(rows.perplexity, models),
        *_short_inputs(from_first, window),
        *(check for name in tasks for check in TASKS[name].checks(rows, window)),
        *_export(export),
    ]


def _one(rows: Iterable[PerplexityRow], *, last_quarter: bool = False) -> float | None:
    """Returns the perplexity over all rows; None where there are none."""
    return aggregate(rows, lambda row: None, last_quarter=last_quarter).get(None)


def _search_beats_baselines(rows: Sequence[PerplexityRow], models: RunModels) -> list[Check]:
    """Checks that the searched factors beat every baseline without fine-tuning.

    The rows are of held-out documents, on which nothing was searched.
    """
    length = models.first.target_length
    at_target = [row for row in rows if (row.model, row.length) == ("base", length)]
    by_method = aggregate(at_target, lambda row: (row.method, row.attention_factor))
    ours = by_method.pop(("longrope", "searched"), None)
    others = {
        key: value
        for key, value in by_method.items()
        # a searched ramp is what this search passed through, not a method as published
        if key[0] != "longrope" and not key[0].endswith(SEARCHED_RAMP)
    }
    if ours is None or not others:
        return []
    (name, source), best = min(others.items(), key=lambda item: item[1])
    text = (
        f"perplexity at {format_length(length)} without fine-tuning; best as published: {name}, "
        f"{source} attention factor"
    )
    return [Check.of("search-beats-baselines", text, ours, best, met=ours < best)]


def _last_quarter(rows: Sequence[PerplexityRow], models: RunModels) -> list[Check]:
    """Checks that the model as exported still uses its context at the end of the target length."""
    length = models.steps[-1].target_length
    at_target = [row for row in rows if row.length == length]
    whole = [row for row in at_target if row.protocol == "first-token"]
    ours = _one(of_the_product(whole), last_quarter=True)
    inside = (row for row in at_target if (row.model, row.protocol) == ("base", "sliding"))
    base = _one(inside, last_quarter=True)
    if ours is None or base is None:
        return []
    text = (
        f"perplexity over the last quarter of {format_length(length)}; bound: "
        f"{LAST_QUARTER_RATIO:.2f} × the base inside its window"
    )
    return [_within("last-quarter", text, ours, LAST_QUARTER_RATIO * base)]


def _short_inputs(rows: Sequence[PerplexityRow], window: int) -> list[Check]:
    """Checks what the extension costs inside the old window, against base and control."""
    checks = []
    for length in sorted({row.length for row in rows if row.length <= window}):
        at_length = [row for row in rows if row.length == length]
        ours = _one(of_the_product(at_length))
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


def _export(export: ExportSummary | None) -> list[Check]:
    """Checks that transformers computes from the exported folder what our model computes."""
    if export is None or export.compared_length is None:
        return []
    value, length = export.largest_difference, format_length(export.compared_length)
    text = f"a token's loss as exported against ours, largest difference up to {length}, in nats"
    met = value is not None and value <= EXPORT_DIFFERENCE
    shown = None if value is None else float(f"{value:.2g}")
    return [Check(name="export", text=text, value=shown, bound=EXPORT_DIFFERENCE, met=met)]


def _within(name: str, text: str, value: float, bound: float) -> Check:
    """Returns the check that `value` is at most `bound`; it is missed unless both are finite."""
    met = math.isfinite(value) and math.isfinite(bound) and value <= bound
    return Check.of(name, text, value, bound, met=met)
