"""Journals as curves: the best perplexity so far against the cost so far."""

from __future__ import annotations

import gzip
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope.search import Candidate, JournalEntry


@dataclass(frozen=True)
class Curve:
    """The course of one search."""

    searcher: str
    seed: int
    costs: list[float]
    """Cost up to each evaluation, in forward passes over all documents."""
    perplexities: list[float]
    """Lowest perplexity up to each evaluation; infinite while there is none."""
    best: Candidate
    backward_ratio: float
    """Time of a backward pass over that of a forward pass in this search; 0 without gradients."""


def read_entries(path: Path) -> list[JournalEntry]:
    """Returns the evaluations of a journal, which may be compressed (`.gz`).

    Checksums are not verified: the journals of the benchmark are this project's own.
    """
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
    return [JournalEntry.from_json(json.loads(line)) for line in lines[1:]]


def read_curve(path: Path) -> Curve:
    """Returns the curve of the journal at `path`, which is named problem-searcher-seed.jsonl."""
    _, searcher, seed = path.name.split(".")[0].split("-")
    entries = read_entries(path)
    ratio = _backward_ratio(entries)
    whole = max(entry.cost_tokens for entry in entries)
    costs, perplexities = [], []
    cost, best = 0.0, None
    for entry in entries:
        # in units of one forward pass over all documents; a gradient adds a backward pass
        cost += entry.cost_tokens / whole * (1 + ratio * (entry.evaluation.gradient is not None))
        evaluation = entry.evaluation
        if evaluation.usable and (best is None or evaluation.loss < best.evaluation.loss):
            best = entry
        costs.append(cost)
        perplexities.append(best.evaluation.perplexity if best else float("inf"))
    assert best is not None
    return Curve(searcher, int(seed), costs, perplexities, best.candidate, ratio)


def summary_rows(curves: Sequence[Curve], held_out: Sequence[float]) -> list[dict[str, Any]]:
    """Returns a row per search: cost, and perplexity on its own and on held-out documents."""
    return [
        {
            "searcher": curve.searcher,
            "seed": curve.seed,
            "forward_equivalents": curve.costs[-1],
            "backward_ratio": curve.backward_ratio,
            "search_perplexity": curve.perplexities[-1],
            "held_out_perplexity": other,
            "attention_factor": curve.best.attention_factor,
        }
        for curve, other in zip(curves, held_out, strict=True)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a table, with a line of means for searchers run with several seeds."""
    lines = [f"{'searcher':<12}{'seed':>5}{'cost':>9}{'search':>10}{'held out':>10}{'t':>8}"]
    for row in rows:
        lines.append(
            f"{row['searcher']:<12}{row['seed']:>5}{row['forward_equivalents']:>9.1f}"
            f"{row['search_perplexity']:>10.4f}{row['held_out_perplexity']:>10.4f}"
            f"{row['attention_factor']:>8.3f}"
        )
    for searcher in dict.fromkeys(row["searcher"] for row in rows):
        same = [row for row in rows if row["searcher"] == searcher]
        if len(same) > 1:
            means = [statistics.fmean(row[key] for row in same) for key in _MEANS]
            lines.append(
                f"{searcher:<12}{'mean':>5}{means[0]:>9.1f}{means[1]:>10.4f}{means[2]:>10.4f}"
            )
    return "\n".join(lines)


_MEANS = ("forward_equivalents", "search_perplexity", "held_out_perplexity")


def _backward_ratio(entries: Sequence[JournalEntry]) -> float:
    """Returns the median time per token of a backward pass over that of a forward pass."""
    forward = [e.seconds / e.cost_tokens for e in entries if e.evaluation.gradient is None]
    both = [e.seconds / e.cost_tokens for e in entries if e.evaluation.gradient is not None]
    return statistics.median(both) / statistics.median(forward) - 1 if both else 0.0
