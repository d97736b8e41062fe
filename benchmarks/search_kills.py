"""Kills a search again and again and compares its result with that of an undisturbed search.

    python -m benchmarks.search_kills     100 kills of a stub, 5 of a real search; 1 and 4 processes
    python -m benchmarks.search_kills --stub 20 --real 2 --processes 2

All processes of an attempt get SIGKILL at a random moment, which is counted from its first
evaluation in three of four attempts, else from its start; then the search is started again. At the
end the journal (but for times) and the best factors must be those of the undisturbed search, and no
attempt may have evaluated what was in the journal when it began. The stub's loss is a formula. The
real search is the ramp, gradient descents and mutants on the demonstration model (two documents of
512 tokens, perplexity by forward and backward passes). Attempts are forked from a process that has
imported everything, so that most kills hit a search and not its imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from checkpoints_tools.load_any import load_model
from megatron_longrope.data import load_tokenizer
from megatron_longrope.evaluation import PerplexityObjective
from megatron_longrope.evaluation.dispatch import Dispatcher
from megatron_longrope.pipeline.corpus import load_corpus
from megatron_longrope.pipeline.recipe import CorpusConfig
from megatron_longrope.presets import model_path
from megatron_longrope.runtime import Runtime, start_runtime
from megatron_longrope.search import (
    Candidate,
    EarlyStopping,
    Evaluation,
    Journal,
    MemoryJournal,
    Searcher,
    SearcherChoice,
    SearchSpace,
    SearchTask,
    Terms,
    read_journal,
    run_search,
)

Kind = Literal["stub", "real"]
_CHOICES: dict[Kind, dict[str, Any]] = {
    "stub": {
        "name": "evolution",
        "population": 40,
        "mutants": 20,
        "crossovers": 20,
        "parents": 20,
        "iterations": 24,
    },
    "real": {
        "name": "hybrid",
        "ramp": {"max_rounds": 2},
        "descent": {"passes": 8},
        "rounds": 3,
        "mutants": 5,
    },
}
_NUM_PAIRS, _SCALE = 32, 8.0
_STUB_SECONDS = 0.001
_LENGTH, _NUM_DOCUMENTS = 512, 2


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stub", type=int, default=100, help="kills of the stub's search, per number of processes"
    )
    parser.add_argument(
        "--real", type=int, default=5, help="kills of the real search, per number of processes"
    )
    parser.add_argument("--processes", default="1,4")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    kills: dict[Kind, int] = {"stub": options.stub, "real": options.real}
    for size in map(int, options.processes.split(",")):
        for kind, wanted in kills.items():
            if wanted:
                _torture(kind, size, wanted, random.Random(options.seed))


def _torture(kind: Kind, size: int, wanted: int, chance: random.Random) -> None:
    """Kills searches of one kind on `size` processes until `wanted` kills, and checks each end."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        begun = time.monotonic()
        assert _attempt(kind, size, whole, None) == 0, "the undisturbed search failed"
        seconds = time.monotonic() - begun
        kills = redone = empty = 0
        while kills < wanted:
            known = _journalled(killed)
            # on average 1.25 shares of the search per attempt, so that kills fall on all of it
            moment = chance.uniform(0, 2.5 * seconds / wanted)
            killed_it = _attempt(
                kind, size, killed, moment, await_evaluation=chance.random() < 0.75
            )
            redone += len(known & _take_evaluated(killed))
            kills += killed_it
            empty += killed_it and _journalled(killed) == known
            # A search that ended before its kill is compared and begun anew: else all further
            # kills would hit a finished search.
            if not killed_it:
                _compare(whole, killed)
                (killed / "journal.jsonl").unlink()
        assert _attempt(kind, size, killed, None) == 0
        _compare(whole, killed)
        assert redone == 0, f"{redone} evaluations were done again"
        print(
            f"{kind} on {size}: {kills} kills ({empty} before a first new evaluation), "
            f"{len(_journalled(killed))} "
            "evaluations, none done again, journal and best factors as undisturbed",
            flush=True,
        )


def _compare(whole: Path, killed: Path) -> None:
    """Asserts that two searches left the same journal, but for times, and the same best factors."""
    (header, expected), (other, entries) = (
        read_journal(path / "journal.jsonl") for path in (whole, killed)
    )
    assert header == other and [replace(e, seconds=0.0) for e in expected] == [
        replace(e, seconds=0.0) for e in entries
    ]
    assert (whole / "best.json").read_bytes() == (killed / "best.json").read_bytes()


def _journalled(folder: Path) -> set[str]:
    """Returns the names of the evaluations in the journal; none where there is no journal yet."""
    path = folder / "journal.jsonl"
    if not path.exists():
        return set()
    evaluations = [(entry.candidate, entry.evaluation) for entry in read_journal(path)[1]]
    return {
        _name(candidate, done.gradient is not None, done.sample) for candidate, done in evaluations
    }


def _take_evaluated(folder: Path) -> set[str]:
    """Returns the names of what the last attempt evaluated, and deletes its lists."""
    names: set[str] = set()
    for path in folder.glob("evaluated-*"):
        names |= set(path.read_text().split())
        path.unlink()
    return names


def _attempt(
    kind: Kind, size: int, folder: Path, kill_after: float | None, await_evaluation: bool = True
) -> int:
    """Runs the search on `size` processes and returns 1 where it was killed, 0 where it ended.

    Args:
        kind: The stub or the real search.
        size: Number of processes.
        folder: Folder of the journal, from which the search goes on.
        kill_after: Seconds until the processes are killed; None lets the search end.
        await_evaluation: Whether these count from the first evaluation, else from the start.
    """
    folder.mkdir(exist_ok=True)
    fork = multiprocessing.get_context("fork")
    port = _free_port()
    processes = [
        fork.Process(target=_rank, args=(kind, rank, size, port, folder)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    if kill_after is not None:
        while await_evaluation and not _has_begun(folder) and processes[0].is_alive():
            time.sleep(0.001)
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline and processes[0].is_alive():
            time.sleep(0.001)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert all(code in (0, -signal.SIGKILL) for code in codes), codes
    return int(-signal.SIGKILL in codes)


def _has_begun(folder: Path) -> bool:
    """Returns whether a process of this attempt has begun an evaluation."""
    return any(path.stat().st_size for path in folder.glob("evaluated-*"))


def _rank(kind: Kind, rank: int, size: int, port: int, folder: Path) -> None:
    """Runs the search on one rank; rank 0 keeps the journal and writes the best factors."""
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in values.items()}
    with (
        start_runtime(threads=1) as runtime,
        (folder / f"evaluated-{rank}").open("w", buffering=1) as done,
    ):
        objective = _Stub(runtime, done) if kind == "stub" else _real(runtime, done)
        searcher = _searcher(kind)
        options: dict[str, Any] = {"stopping": EarlyStopping()}
        if not runtime.is_main:
            run_search(
                searcher, objective.stream, MemoryJournal(runtime.broadcast(None)), **options
            )
            return
        with Journal.open(folder / "journal.jsonl", searcher.identity(), kind) as journal:
            runtime.broadcast(journal.entries)
            outcome = run_search(searcher, objective.stream, journal, **options)
        (folder / "best.json").write_text(json.dumps(outcome.best.to_json()))


def _searcher(kind: Kind) -> Searcher:
    space = SearchSpace.first_stage(_NUM_PAIRS, _SCALE)
    seeds = [
        Candidate((_SCALE,) * _NUM_PAIRS),
        Candidate(tuple(np.linspace(1.0, _SCALE, _NUM_PAIRS)), 0, 1.1),
    ]
    task = SearchTask(length=_LENGTH, scale=_SCALE, num_documents=_NUM_DOCUMENTS)
    return SearcherChoice.model_validate(_CHOICES[kind]).build(space, seeds, 1, task)


class _Stub:
    """An objective on four documents whose loss is a formula.

    Candidates are dispatched to the processes like the passes of the real objective.
    """

    def __init__(self, runtime: Runtime, done: Any) -> None:
        self._dispatcher, self._done = Dispatcher(runtime), done

    def stream(self, candidates: Sequence[Candidate], terms: Terms) -> Iterator[Evaluation]:
        """Yields the evaluation of each candidate in order."""
        results = self._dispatcher.in_order(
            len(candidates), lambda i: self._evaluate(candidates[i], terms).to_json()
        )
        yield from map(Evaluation.from_json, results)

    def _evaluate(self, candidate: Candidate, terms: Terms) -> Evaluation:
        print(_name(candidate, terms.gradient, terms.sample), file=self._done)
        losses = _formula(candidate)
        for scored in range(1, 5):
            time.sleep(_STUB_SECONDS / 4)
            result = Evaluation(tuple(losses[:scored]), (100,) * scored, completed=scored == 4)
            if scored < 4 and terms.judge is not None and terms.judge(result):
                break
        return result


def _formula(candidate: Candidate) -> list[float]:
    """Returns the loss of each document: a distance to a logistic step, with ripples."""
    logs = np.log(candidate.rescale)
    wanted = np.log(9.0) / (1 + np.exp(-(np.arange(_NUM_PAIRS) - 12.0)))
    distance = float(np.mean((logs - wanted) ** 2)) + 3 * (candidate.attention_factor - 1.17) ** 2
    return [100 * (2.0 + distance + 0.01 * float(np.sin(40 * logs[d::4].sum()))) for d in range(4)]


def _real(runtime: Runtime, done: Any) -> PerplexityObjective:
    """Returns the objective of the demonstration model, which notes every pass in `done`."""
    loaded = load_model(model_path("preset:demo"), runtime, dtype=torch.float32)
    assert loaded.tokenizer_file is not None
    corpus = load_corpus(
        CorpusConfig(standard_library=True, judged_on="development"),
        load_tokenizer(loaded.tokenizer_file),
        _LENGTH,
    )
    documents = [document.prefix(_LENGTH) for document in corpus.search[:_NUM_DOCUMENTS]]
    objective = PerplexityObjective(
        loaded.model, documents, target_length=_LENGTH, max_batch_tokens=_LENGTH
    )
    one_pass = objective._pass

    def noted(candidate: Candidate, documents: Sequence[int], terms: Terms) -> Evaluation:
        print(_name(candidate, terms.gradient, terms.sample), file=done)
        return one_pass(candidate, documents, terms)

    objective._pass = noted  # type: ignore[method-assign]
    return objective


def _name(candidate: Candidate, with_gradient: bool, sample: tuple[int, ...] | None) -> str:
    """Returns a name without spaces that identifies an evaluation."""
    return json.dumps([candidate.to_json(), with_gradient, sample], separators=(",", ":"))


def _free_port() -> int:
    """Returns a port that is free now, for the processes to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
