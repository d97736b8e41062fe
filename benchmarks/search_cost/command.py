from __future__ import annotations

from pathlib import Path

import click

from benchmarks.search_cost.problems import open_bench
from megatron_longrope.search import EvolutionSearch, EvolutionSettings, Journal, run_search


@click.group()
def main() -> None:
    pass


@main.command()
@click.option("--problem", type=click.Choice(["8x", "32x"]), default="8x")
@click.option("--searcher", default="evolution")
@click.option("--seed", type=int, default=1)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def run(problem: str, searcher: str, seed: int, out: Path) -> None:
    with open_bench(problem) as bench:
        settings = (
            EvolutionSettings()
            if problem == "8x"
            else EvolutionSettings(population=32, mutants=8, crossovers=8, parents=16)
        )
        search = EvolutionSearch(bench.problem.space, settings, bench.problem.seeds, seed)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{problem}-{searcher}-{seed}.jsonl"

        def show(p):
            if p.done % 20 == 0:
                print(p.done, p.total, p.best_perplexity, p.eta_seconds, flush=True)

        with Journal.open(path, search.identity(), {**bench.search.identity(), "documents": bench.identity}) as journal:
            run_search(search, bench.search, journal, batch=1, on_progress=show)
