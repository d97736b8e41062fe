"""The numbers that tables and plots show: sums over documents first, then one division."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megatron_longrope.artifacts.results import NllTotal
from megatron_longrope.artifacts.rows import (
    AttentionFactorSource,
    PerplexityRow,
    PositionRow,
    RetrievalRow,
)
from megatron_longrope.errors import InputError

RetrievalGrid = Mapping[tuple[int, float | None], tuple[int, int]]
"""Maps (length in tokens, depth) to (exact matches, trials)."""


@dataclass(frozen=True, order=True)
class Series:
    """What one curve or one row of a table stands for."""

    model: str
    method: str
    attention_factor: AttentionFactorSource = "own"
    """Whether it is the method's own attention factor or the searched one."""
    sliding: tuple[int, ...] = ()
    """(window, stride) in tokens; empty where documents are read in one pass."""


@dataclass
class PerplexityGrid:
    """Perplexity of every series at every length, over all documents."""

    cells: dict[Series, dict[int, NllTotal]]

    @property
    def lengths(self) -> list[int]:
        """All lengths in tokens, ascending."""
        return sorted({length for row in self.cells.values() for length in row})

    @property
    def groups(self) -> list[tuple[str, tuple[int, ...]]]:
        """The groups (model, sliding) within which series may be compared.

        Models are in the order base, extended, control, then by name.
        """
        return sorted(
            {(s.model, s.sliding) for s in self.cells},
            key=lambda group: (group[1], model_order(group[0])),
        )

    def value(self, series: Series, length: int) -> float | None:
        """Returns the perplexity of one cell; None where nothing was scored."""
        total = self.cells.get(series, {}).get(length)
        return None if total is None else total.perplexity

    def of_group(self, model: str, sliding: tuple[int, ...] = ()) -> list[Series]:
        """Returns the series of one group, in the order of methods."""
        return sorted(
            (s for s in self.cells if (s.model, s.sliding) == (model, sliding)), key=series_order
        )

    def uneven_lengths(self) -> list[int]:
        """Returns lengths at which not all series were scored on the same documents.

        At these lengths perplexities are not comparable.
        """
        sets: dict[int, set[frozenset[str]]] = defaultdict(set)
        for row in self.cells.values():
            for length, total in row.items():
                sets[length].add(frozenset(total.documents))
        return sorted(length for length, kinds in sets.items() if len(kinds) > 1)


def perplexity_grid(rows: Iterable[PerplexityRow]) -> PerplexityGrid:
    """Returns exp(Σ nll / Σ tokens) of every series at every length.

    A document that was scored twice with the same result counts once. Raises InputError for one
    that was scored twice with different results.
    """
    seen: dict[tuple[Series, int, str], PerplexityRow] = {}
    cells: dict[Series, dict[int, NllTotal]] = defaultdict(lambda: defaultdict(NllTotal))
    for row in rows:
        sliding = (row.window, row.stride) if row.window and row.stride else ()
        series = Series(row.model, row.method, row.attention_factor, sliding)
        earlier = seen.setdefault((series, row.length, row.document), row)
        if earlier is not row:
            _require_same(earlier, row)
            continue
        cells[series][row.length].add(row)
    return PerplexityGrid({series: dict(row) for series, row in cells.items()})


def _require_same(earlier: PerplexityRow, row: PerplexityRow) -> None:
    first, second = (
        math.inf if nll_sum is None else nll_sum for nll_sum in (earlier.nll_sum, row.nll_sum)
    )
    if earlier.tokens != row.tokens or not math.isclose(first, second, rel_tol=1e-6):
        what = f"{row.model}/{row.method}/{row.attention_factor}, {row.length} tokens"
        raise InputError(
            "document", row.document, f"was scored twice with different results ({what})"
        )


def position_curves(rows: Iterable[PositionRow]) -> dict[Series, list[tuple[int, int, NllTotal]]]:
    """Returns the buckets (start, end, sums) of the longest context of each series, ascending.

    Rows of the same bucket are summed. Shorter contexts are left out, as their factors may differ.
    """
    by_series: dict[Series, list[PositionRow]] = defaultdict(list)
    for row in rows:
        by_series[Series(row.model, row.method, row.attention_factor)].append(row)
    return {series: _buckets(by_series[series]) for series in sorted(by_series, key=series_order)}


def _buckets(rows: list[PositionRow]) -> list[tuple[int, int, NllTotal]]:
    longest = max(row.length for row in rows)
    buckets: dict[tuple[int, int], NllTotal] = defaultdict(NllTotal)
    for row in rows:
        if row.length == longest:
            buckets[row.bucket_start, row.bucket_end].add(row)
    return [(start, end, buckets[start, end]) for start, end in sorted(buckets)]


def retrieval_grids(rows: Iterable[RetrievalRow]) -> dict[str, dict[Series, RetrievalGrid]]:
    """Returns a grid of exact matches per task and series, summed over rows."""
    grids: dict[str, dict[Series, dict[tuple[int, float | None], tuple[int, int]]]] = {}
    for row in rows:
        series = Series(row.model, row.method, row.attention_factor)
        grid = grids.setdefault(row.task, {}).setdefault(series, {})
        correct, trials = grid.get((row.length, row.depth), (0, 0))
        grid[row.length, row.depth] = (correct + row.correct, trials + row.trials)
    return {
        task: dict(sorted(grids[task].items(), key=lambda item: series_order(item[0])))
        for task in sorted(grids)
    }


def best_so_far(values: Iterable[tuple[float, bool]]) -> list[float]:
    """Returns the lowest perplexity so far, after each (perplexity, completed).

    A candidate that was stopped early never becomes the best.

    >>> best_so_far([(9.0, True), (7.0, False), (8.0, True)])
    [9.0, 9.0, 8.0]
    """
    best, curve = math.inf, []
    for value, completed in values:
        if completed and value < best:
            best = value
        curve.append(best)
    return curve


_MODELS = ("base", "extended", "exported", "control")
_METHODS = ("none", "model", "pi", "ntk", "dynamic-ntk", "yarn", "llama3", "longrope")


def model_order(model: str) -> tuple[int, str]:
    """Returns a sort key of models: base, extended, control, then the rest by name."""
    return (_MODELS.index(model) if model in _MODELS else len(_MODELS), model)


def method_order(method: str) -> tuple[int, str]:
    """Returns a sort key of methods: known ones in a fixed order, unknown ones, then LongRoPE's."""
    family = method_family(method)
    if family == _METHODS[-1]:
        return (len(_METHODS), method)
    return (_METHODS.index(family) if family in _METHODS else len(_METHODS) - 1, method)


def series_order(series: Series) -> tuple[int | str, ...]:
    """Returns a sort key of series: by model, then by method."""
    return (
        *model_order(series.model),
        *method_order(series.method),
        series.attention_factor,
        *series.sliding,
    )


def method_family(method: str) -> str:
    """Returns the scaling method that a label names, without scale and settings.

    >>> method_family("yarn:2,beta_fast=4"), method_family("dynamic_ntk")
    ('yarn', 'dynamic-ntk')
    """
    return re.split("[:,]", method, maxsplit=1)[0].lower().replace("_", "-")
