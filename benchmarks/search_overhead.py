"""Measures the share of a search's time that is not spent in forward and backward passes.

    python -m benchmarks.search_overhead    the default searcher, shortened; 1 and 2 ranks

The share is (ranks × wall time − time in passes) / (ranks × wall time) over the search alone; model
and documents are loaded before. On several processes it includes the time in which a rank waits for
the others. The search is the 8× problem of benchmarks.search_cost with its journal on disk; every
process has one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.ranks import parse_or_measure, run_ranks

BOUND = 0.03
"""Largest share allowed on one rank."""


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default="1,2", help="data-parallel processes")
    parser.add_argument("--passes", type=int, default=3, help="of the descent over the documents")
    parser.add_argument("--documents-per-step", type=int, default=1)
    options = parse_or_measure(parser, _measure)
    if options is None:
        return
    for size in map(int, options.ranks.split(",")):
        settings = {"passes": options.passes, "documents_per_step": options.documents_per_step}
        ranks = run_ranks("benchmarks.search_overhead", size, settings)
        wall, busy = max(rank["wall"] for rank in ranks), [rank["busy"] for rank in ranks]
        share = 1 - sum(busy) / (size * wall)
        each = ", ".join(f"{1 - seconds / wall:.1%}" for seconds in busy)
        print(
            f"{size} ranks: {wall:.1f} s, {share:.2%} not in passes ({each}); bound on one rank "
            f"{BOUND:.0%}",
            flush=True,
        )


def _measure(settings: dict[str, Any]) -> dict[str, float]:
    """Returns wall time and time in passes of this rank, in seconds; runs on every rank."""
    from benchmarks.search_cost.problems import LENGTHS, open_bench
    from megatron_longrope.model import factor_gradient, forward
    from megatron_longrope.search import (
        EarlyStopping,
        Journal,
        MemoryJournal,
        SearcherChoice,
        SearchTask,
        run_search,
    )

    clock = _Clock()
    # every forward and backward pass goes through run_schedule, which these modules import by name
    for module in (forward, factor_gradient):
        module.run_schedule = clock.timed(module.run_schedule)  # type: ignore[attr-defined]
    choice = SearcherChoice.model_validate({"name": "hybrid", "descent": settings})
    with open_bench("8x") as bench, tempfile.TemporaryDirectory() as folder:
        task = SearchTask(LENGTHS["8x"], bench.scale, bench.search.num_documents)
        searcher = choice.build(bench.problem.space, bench.problem.seeds, 1, task)
        bench.search([bench.problem.seeds[0]])  # warm-up: buffers and caches are made once
        bench.runtime.barrier()
        clock.seconds, begun = 0.0, time.perf_counter()
        path = Path(folder, "journal.jsonl")
        journal = (
            Journal.open(path, searcher.identity(), bench.identity)
            if bench.runtime.is_main
            else MemoryJournal()
        )
        run_search(searcher, bench.search.stream, journal, stopping=EarlyStopping())
        return {"wall": time.perf_counter() - begun, "busy": clock.seconds}


class _Clock:
    """A clock that adds up the time spent in functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function` with its time added to `seconds`."""

        def run(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.perf_counter() - begun

        return run


if __name__ == "__main__":
    main()
