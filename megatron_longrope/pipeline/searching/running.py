"""Runs a search in a run directory on all ranks, from its journal to a factors file."""

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
    """Runs a search to its end and returns the best factors, and what the search did.

    It goes on from its journal where there is one. The factors are written to `factors/NAME.json`
    under the name of the search. All ranks come here together.

    Args:
        problem: Space, seeds and length of the search.
        objective: What scores candidates.
        config: The searcher, its seed, and early stopping.
        directory: The run directory.
        documents_sha256: Identifies the documents searched on.
        show: Is called with the progress of the search, and the parts of a mixture.
        model_name: The model that the factors say they were searched on.
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
    """Returns `show`, made to be told the loss of each part where several are mixed."""
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
    """Opens a journal on all ranks: the file on the main one, a copy of its entries on the others.

    Raises InputError on all ranks where the file is damaged or of another search.
    """
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

    # `opened` is filled on the main rank alone; the others keep what follows in memory
    found = on_main(runtime, entries)
    if not opened:
        yield MemoryJournal(found)
        return
    with opened[0] as journal:
        yield journal
