"""Running a search in a run directory: from its journal, on all ranks, to factors written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import PerplexityObjective, factors_of
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching.objective import judged_on
from megatron_longrope.pipeline.searching.problems import SearchProblem
from megatron_longrope.rope import FactorOrigin, RopeFactors, write_factors
from megatron_longrope.runtime import Runtime
from megatron_longrope.search import (
    Journal,
    MemoryJournal,
    Record,
    SearchOutcome,
    SearchProgress,
    SearchTask,
    run_search,
)

Show = Callable[[SearchProgress], None]


def search_factors(
    problem: SearchProblem,
    objective: PerplexityObjective,
    config: SearchConfig,
    directory: RunDirectory,
    documents_sha256: str,
    show: Show | None = None,
    model_name: str | None = None,
) -> tuple[RopeFactors, SearchOutcome]:
    """Runs a search to its end, from its journal where there is one, and writes the best factors
    down.

    Args:
        problem: where the search runs and starts.
        objective: what candidates are scored by.
        config: the searcher and its settings.
        directory: gets journal and factors.
        documents_sha256: of the documents searched on.
        show: told how far the search is, with the parts of a mixture.
        model_name: what the factors say they were searched on.
    """
    runtime, geometry = objective.model.runtime, objective.model.geometry
    task = SearchTask(
        length=problem.length,
        scale=problem.length / geometry.original_length,
        num_documents=objective.num_documents,
    )
    searcher = config.searcher.build(problem.space, problem.seeds, config.seed, task)
    stopping = config.early_stopping
    judged_by = {
        **judged_on(objective, documents_sha256),
        "early_stopping": stopping and stopping.model_dump(mode="json"),
    }
    with shared_journal(
        runtime, directory.journal(problem.name), searcher.identity(), judged_by
    ) as journal:
        outcome = run_search(
            searcher,
            objective.stream,
            journal,
            stopping=stopping,
            on_progress=show and _with_parts(show, objective),
        )
    origin = FactorOrigin(
        method="longrope",
        model=model_name,
        data=documents_sha256[:16],
        score=outcome.evaluation.loss,
        searcher=config.searcher.name,
        scored=None
        if objective.is_perplexity
        else ", ".join(part.name for part in objective.scored_parts),
    )
    factors = factors_of(outcome.best, geometry, problem.length, origin)
    if runtime.is_main:
        write_factors(directory.factors(problem.name), factors)
    runtime.barrier()
    return factors, outcome


def _with_parts(show: Show, objective: PerplexityObjective) -> Show:
    """`show`, told of a mixture what each part's own number is, and no perplexity of the whole."""
    if objective.is_perplexity:
        return show

    def told(progress: SearchProgress) -> None:
        if progress.best_evaluation is not None:
            parts = objective.part_losses(progress.best_evaluation)
            progress = replace(progress, best_perplexity=None, best_parts=parts)
        show(progress)

    return told


@contextmanager
def shared_journal(
    runtime: Runtime, path: Path, identity: dict[str, Any], judged_by: dict[str, Any]
) -> Iterator[Record]:
    """Opens a journal on all ranks: the file on the main one, what it held on the others. Raises
    InputError on all."""
    opened: list[Journal] = []

    def entries() -> Any:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "journals", path.parent, f"cannot be made: {error.strerror}"
            ) from error
        opened.append(Journal.open(path, identity, judged_by))
        return opened[0].entries

    found = on_main(runtime, entries)
    if not opened:
        yield MemoryJournal(found)
        return
    with opened[0] as journal:
        yield journal
