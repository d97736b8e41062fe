"""The booked cost of ten searches against what they really computed, on the demonstration model.

    python -m benchmarks.booked_cost            operations, counted by torch as they are done
    python -m benchmarks.booked_cost --time     and CPU time, each search once more

The searches differ in searcher, length, recomputation, and in what candidates are scored on.
`booked` is the cost that `longrope search` and the stages of a run report. `counted` are the matrix
products and attention calls that torch's dispatcher saw. `before` is what was booked until backward
passes were derived: 1.5 forward passes each, every token as one of the searched length. With
`--time`, the CPU time of the search over that of a forward pass over all its documents, measured
just before and after, stands beside the booked forward passes. One thread.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.counted_flops import flop_counter
from checkpoints_tools.load_any import load_model
from data_prep.documents import tokenize
from data_prep.readers import read_text_files
from megatron_longrope.config import parse_length
from megatron_longrope.data import load_tokenizer
from megatron_longrope.evaluation import EvaluationDocument, PerplexityObjective
from megatron_longrope.model import ModelShape
from megatron_longrope.model.engine.settings import Recompute
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    first_search,
    search_cost,
    search_objective,
)
from megatron_longrope.presets import model_path
from megatron_longrope.runtime import Runtime, start_runtime
from megatron_longrope.search import JournalEntry, MemoryJournal, SearchTask, run_search

BOUND = 0.05
_DESCENT = {"passes": 2, "checks": 2}
_HYBRID = {
    "name": "hybrid",
    "ramp": {"max_rounds": 1},
    "descent": _DESCENT,
    "rounds": 1,
    "mutants": 4,
}
_EVOLUTION = {
    "name": "evolution",
    "population": 14,
    "mutants": 4,
    "crossovers": 4,
    "parents": 6,
    "iterations": 2,
}
SEARCHES: tuple[tuple[str, str, Recompute, dict[str, Any]], ...] = (
    ("hybrid", "1k", "none", {"searcher": _HYBRID}),
    ("hybrid", "1k", "full", {"searcher": _HYBRID}),
    ("hybrid", "512", "selective", {"searcher": _HYBRID, "retrieval_documents": 2}),
    ("gradient", "1k", "none", {"searcher": {"name": "gradient", "passes": 4}}),
    (
        "gradient, all documents a step",
        "1k",
        "selective",
        {"searcher": {"name": "gradient", "passes": 4, "documents_per_step": None}},
    ),
    ("gradient", "2k", "full", {"searcher": {"name": "gradient", "passes": 2}}),
    ("evolution, stops early", "512", "none", {"searcher": _EVOLUTION}),
    (
        "cma, ladder",
        "1k",
        "none",
        {
            "searcher": {"name": "cma", "population": 8, "iterations": 2},
            "early_stopping": {"ladder": ["256"]},
        },
    ),
    (
        "random, two lengths",
        "1k",
        "none",
        {"searcher": {"name": "random", "evaluations": 8}, "mixture": {"256": 0.5}},
    ),
    ("gradient", "2k", "none", {"searcher": {"name": "gradient", "passes": 2}}),
)


@dataclass(frozen=True)
class Row:
    """One search: operations booked and counted, and forward passes booked and measured."""

    search: str
    length: str
    recompute: str
    evaluations: int
    booked: float
    """Floating-point operations."""
    counted: float
    before: float
    forward_equivalents: float
    """Booked cost over that of a forward pass over all documents."""
    measured_equivalents: float | None
    """CPU time over that of a forward pass over all documents."""

    @property
    def error(self) -> float:
        """How far the booked operations are off, as a share of those counted."""
        return self.booked / self.counted - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--time", action="store_true", help="measure CPU time too")
    parser.add_argument("--documents", type=int, default=3, choices=(2, 3), help="documents")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    rows = []
    with start_runtime(threads=1) as runtime:
        documents = _documents(options.documents)
        for name, length, recompute, settings in SEARCHES:
            config = SearchConfig.model_validate({"num_documents": len(documents), **settings})
            row = _row(runtime, name, length, recompute, config, documents, options.time)
            rows.append(row)
            print(_line(row), flush=True)
    worst = max(rows, key=lambda row: abs(row.error))
    before = max(rows, key=lambda row: abs(row.before / row.counted - 1))
    print(f"worst: {worst.error:+.3%} ({worst.search}, {worst.length}, {worst.recompute})")
    print(f"worst before: {before.before / before.counted - 1:+.1%} ({before.search})")
    if options.json:
        values = [{**asdict(row), "error": row.error} for row in rows]
        options.json.write_text(json.dumps(values, indent=1), encoding="utf-8")
    if abs(worst.error) > BOUND:
        raise SystemExit(1)


def _row(
    runtime: Runtime,
    name: str,
    length: str,
    recompute: Recompute,
    config: SearchConfig,
    documents: Sequence[EvaluationDocument],
    is_timed: bool,
) -> Row:
    """Runs one search, counted, and once more against the clock if asked for.

    Args:
        runtime: This process.
        name: What the search is called in the table.
        length: The length searched for.
        recompute: Which activations backward passes compute again.
        config: The searcher, and what candidates are scored on.
        documents: The documents searched on.
        is_timed: Whether CPU time is measured.
    """
    tokens = parse_length(length)
    loaded = load_model(model_path("preset:demo"), runtime, recompute=recompute)
    assert loaded.tokenizer_file is not None
    tokenizer = load_tokenizer(loaded.tokenizer_file)
    problem = first_search(config, loaded.model.geometry, tokens)
    objective = search_objective(loaded.model, documents, tokenizer, config, tokens)
    with flop_counter() as counter:
        entries = _search(problem, objective, config)
    cost = search_cost(entries, objective.cost)
    measured = None
    if is_timed:
        forward = _forward_seconds(problem, objective)
        started = time.process_time()
        _search(problem, objective, config)
        seconds = time.process_time() - started
        measured = seconds / ((forward + _forward_seconds(problem, objective)) / 2)
    return Row(
        name,
        length,
        recompute,
        cost.evaluations,
        cost.flops,
        counter.get_total_flops(),
        _booked_before(entries, loaded.model.shape, tokens),
        cost.flops / objective.cost.whole_flops,
        measured,
    )


def _documents(count: int) -> list[EvaluationDocument]:
    paths = [inspect.getsourcefile(module) for module in (argparse, inspect, typing)]
    texts = read_text_files([path for path in paths if path][:count])
    tokenizer = load_tokenizer(model_path("preset:demo"))
    return [EvaluationDocument(text.name, text.tokens) for text in tokenize(texts, tokenizer)]


def _search(
    problem: SearchProblem, objective: PerplexityObjective, config: SearchConfig
) -> tuple[JournalEntry, ...]:
    task = SearchTask(
        length=problem.length,
        scale=problem.length / objective.model.geometry.original_length,
        num_documents=objective.num_documents,
    )
    searcher = config.searcher.build(problem.space, problem.seeds, config.seed, task)
    return run_search(
        searcher, objective.stream, MemoryJournal(), stopping=config.early_stopping
    ).entries


def _forward_seconds(problem: SearchProblem, objective: PerplexityObjective) -> float:
    """Returns the CPU time of a forward pass over all documents, as the mean of three."""
    plain, candidate = objective.without_ladder(), problem.seeds[0]
    plain([candidate])
    started = time.process_time()
    plain([candidate] * 3)
    return (time.process_time() - started) / 3


def _booked_before(entries: tuple[JournalEntry, ...], shape: ModelShape, length: int) -> float:
    passes = sum(entry.cost_tokens * (1 + 1.5 * entry.has_gradient) for entry in entries)
    return passes * shape.forward_flops(length) / length


def _line(row: Row) -> str:
    timed = ""
    if row.measured_equivalents is not None:
        timed = (
            f"  {row.forward_equivalents:7.2f} passes booked, {row.measured_equivalents:7.2f} by "
            f"CPU time ({row.forward_equivalents / row.measured_equivalents - 1:+.1%})"
        )
    return (
        f"{row.search:>30} {row.length:>4} {row.recompute:>9} {row.evaluations:3} evaluations: "
        f"booked {row.booked:.4e}, counted {row.counted:.4e} ({row.error:+.3%}; before "
        f"{row.before / row.counted - 1:+.1%}){timed}"
    )


if __name__ == "__main__":
    main()
