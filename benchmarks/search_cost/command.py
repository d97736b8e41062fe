"""The commands of the benchmark: `run`, `peer` for Microsoft's search, `compare`, `stopping`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.search_cost.compare import Curve, read_curve, read_entries, summary_rows, table
from benchmarks.search_cost.peer import run_peer
from benchmarks.search_cost.plot import plot_curves
from benchmarks.search_cost.problems import LENGTHS, Bench, open_bench
from benchmarks.search_cost.stopping import replay
from megatron_longrope.evaluation import PerplexityObjective
from megatron_longrope.search import (
    DEFAULT_SEARCHER,
    SEARCHERS,
    EarlyStopping,
    EvolutionSettings,
    HybridSettings,
    Journal,
    JournalEntry,
    SearcherChoice,
    SearchProgress,
    SearchTask,
    run_search,
)

_TENTH_OF_672 = {"ramp": {"max_rounds": 5}, "descent": {"passes": 8}}
"""Settings of `hybrid` that cost a tenth of the paper's 672 evaluations for long targets."""
_EVOLUTIONS = {
    "4x": EvolutionSettings(population=32, mutants=8, crossovers=8, parents=16, iterations=8),
    "8x": EvolutionSettings.paper("256k"),
    "32x": EvolutionSettings.paper("2M"),
    "32xwide": EvolutionSettings.paper("2M"),
}
"""Sizes of the evolution by problem: the paper's below and above 512k tokens, small ones for 4x."""
_PROBLEM = click.option(
    "--problem", type=click.Choice(list(LENGTHS)), default="8x", show_default=True
)
_OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="runs/search_cost",
    show_default=True,
    help="Folder of the journals; a search interrupted goes on.",
)


@click.group()
def main() -> None:
    """Perplexity against evaluated tokens for every searcher, on the demonstration model."""


@main.command()
@_PROBLEM
@click.option(
    "--searcher", type=click.Choice(list(SEARCHERS)), default=DEFAULT_SEARCHER, show_default=True
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@_OUT
def run(problem: str, searcher: str, seed: int, out: Path) -> None:
    """Run one search.

    The evolution has the paper's sizes: at 8x those for short targets, at 32x those for long ones;
    at 4x it is small.
    """
    with open_bench(problem) as bench:
        length = LENGTHS[problem]
        task = SearchTask(length, length / bench.window, bench.search.num_documents)
        choice = _choice(problem, searcher)
        search = choice.build(bench.problem.space, bench.problem.seeds, seed, task)
        with Journal.open(
            _journal(out, problem, searcher, seed), search.identity(), bench.identity
        ) as journal:
            run_search(search, bench.search.stream, journal, on_progress=_say)


@main.command()
@_PROBLEM
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=42,
    show_default=True,
    help="Microsoft's code uses 42.",
)
@click.option(
    "--evaluations", type=click.IntRange(1), help="Stop after so many  [default: at its own end]"
)
@click.argument("checkout", type=click.Path(path_type=Path, exists=True))
@_OUT
def peer(problem: str, seed: int, evaluations: int | None, checkout: Path, out: Path) -> None:
    """Run the evolution in CHECKOUT, a checkout of microsoft/LongRoPE, through our evaluator."""
    with open_bench(problem) as bench:
        run_peer(bench, checkout, _journal(out, problem, "microsoft", seed), seed, evaluations)


@main.command()
@_PROBLEM
@click.option(
    "--plot", type=click.Path(path_type=Path), help="PNG of best perplexity against cost."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@_OUT
def compare(problem: str, plot: Path | None, json_path: Path | None, out: Path) -> None:
    """Print what each search reached at which cost, on its documents and on others."""
    curves = [read_curve(path) for path in sorted(out.glob(f"{problem}-*.jsonl*"))]
    if not curves:
        raise click.ClickException(f"no journals of {problem} in {out}")
    with open_bench(problem) as bench:
        rows = summary_rows(curves, _held_out(bench, curves))
    click.echo(table(rows))
    if json_path is not None:
        json_path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        plot_curves(curves, plot)


@main.command()
@click.option(
    "--error-level",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    default=EarlyStopping().error_level,
    show_default=True,
)
@click.option(
    "--ladder",
    multiple=True,
    type=click.IntRange(2),
    metavar="TOKENS",
    help="Lengths to score every candidate at first; takes the model.",
)
@_PROBLEM
@click.argument("journals", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def stopping(
    journals: tuple[Path, ...], error_level: float, ladder: tuple[int, ...], problem: str
) -> None:
    """Replay early stopping over JOURNALS of searches that scored every candidate to the end.

    With --ladder, the journals must be those of PROBLEM.
    """
    rule = EarlyStopping(error_level=error_level, ladder=ladder)
    searches = [read_entries(path) for path in journals]
    rung_tokens: list[int] = []
    if ladder:
        with open_bench(problem) as bench:
            rungs = [bench.rung(length) for length in ladder]
            rung_tokens = [rung.cost_tokens for rung in rungs]
            searches = [_on_rungs(entries, rungs) for entries in searches]
    replays = [replay(entries, rule, rung_tokens) for entries in searches]
    for path, found in zip(journals, replays, strict=True):
        lost = "  LOST THE BEST" if found.lost_best else ""
        click.echo(
            f"{path.name:<32} {found.stopped:>5} of {found.evaluations} stopped, "
            f"{found.token_share:6.1%} of the tokens, "
            f"{found.lost_improvements} improvements stopped{lost}"
        )
    evaluations = sum(found.evaluations for found in replays)
    share = sum(found.token_share * found.evaluations for found in replays) / evaluations
    mean = sum(found.token_share for found in replays) / len(replays)
    lost_best = sum(found.lost_best for found in replays)
    lost_some = sum(found.lost_improvements for found in replays)
    click.echo(
        f"{len(replays)} journals: {share:.1%} of the tokens, {mean:.1%} as the mean of journals, "
        f"{lost_best} lost their best, "
        f"{lost_some} improvements in {evaluations} evaluations stopped"
    )


def _on_rungs(
    entries: Sequence[JournalEntry], rungs: Sequence[PerplexityObjective]
) -> list[JournalEntry]:
    """Returns the same evaluations with their losses at shorter lengths, measured now."""
    candidates = [entry.candidate for entry in entries]
    by_rung = [[evaluation.loss for evaluation in rung(candidates)] for rung in rungs]
    losses = zip(*by_rung, strict=True)  # by candidate
    return [
        replace(entry, evaluation=replace(entry.evaluation, rungs=on_rungs))
        for entry, on_rungs in zip(entries, losses, strict=True)
    ]


def _choice(problem: str, searcher: str) -> SearcherChoice:
    """Returns the searcher with the settings that this benchmark compares on the problem."""
    settings: dict[str, object] = {}
    if SEARCHERS[searcher].Settings is EvolutionSettings:
        settings = _EVOLUTIONS[problem].model_dump()
    elif SEARCHERS[searcher].Settings is HybridSettings and problem.startswith("32x"):
        settings = _TENTH_OF_672
    return SearcherChoice.model_validate({"name": searcher, **settings})


def _held_out(bench: Bench, curves: list[Curve]) -> list[float]:
    """Returns the perplexity of each search's best candidate on the held-out documents."""
    evaluations = bench.held_out([curve.best for curve in curves])
    return [evaluation.perplexity for evaluation in evaluations]


def _journal(out: Path, problem: str, searcher: str, seed: int) -> Path:
    """Returns the path of a search's journal, in a folder that is made where it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    return out / f"{problem}-{searcher}-{seed}.jsonl"


def _say(progress: SearchProgress) -> None:
    """Prints every tenth evaluation."""
    if progress.done % 10 == 0 and progress.best_perplexity is not None:
        left = f"  {progress.eta_seconds:.0f} s left" if progress.eta_seconds else ""
        click.echo(f"{progress.done}/{progress.total}  best {progress.best_perplexity:.4f}{left}")
