"""Running a search: batches, replay, progress, and a process killed again and again."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from megatron_longrope.artifacts.cost import SearchCost
from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.search import (
    Evaluation,
    EvolutionSettings,
    Journal,
    JournalEntry,
    MemoryJournal,
    read_journal,
    run_search,
)
from tests.support.search_stubs import small_search, stub_evaluation, stub_objective

LONGER = EvolutionSettings(population=20, mutants=10, crossovers=10, parents=10, iterations=7)


def timeless(entries: list[JournalEntry]) -> list[tuple]:
    return [(e.index, e.candidate, e.provenance, e.evaluation, e.cost_tokens) for e in entries]


def search_to_file(path, objective=stub_objective) -> None:
    searcher = small_search(5, LONGER)
    with Journal.open(path, searcher.identity(), "stub") as journal:
        run_search(searcher, objective, journal)


def slow_objective(candidates, terms):
    for candidate in candidates:
        time.sleep(0.001)
        yield stub_evaluation(candidate)


def test_a_killed_search_ends_like_an_undisturbed_one(tmp_path):
    search_to_file(tmp_path / "whole.jsonl")
    header, expected = read_journal(tmp_path / "whole.jsonl")
    path, chance, fork = (
        tmp_path / "killed.jsonl",
        random.Random(0),
        multiprocessing.get_context("fork"),
    )
    kills, cut_offs = 0, 0
    while kills < 12:
        before = path.stat().st_size if path.exists() else 0
        process = fork.Process(target=search_to_file, args=(path, slow_objective))
        process.start()
        goal = before + chance.choice([0, 1, 900, 2500])
        while process.is_alive() and (path.stat().st_size if path.exists() else 0) < goal:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.01))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        cut_offs += path.exists() and not path.read_bytes().endswith(b"\n")
        assert path.exists() is False or len(read_journal(path)[1]) < len(expected)
    search_to_file(path)
    assert timeless(read_journal(path)[1]) == timeless(expected) and read_journal(path)[0] == header


def test_nothing_journalled_is_evaluated_again():
    journal, evaluated = MemoryJournal(), []

    def failing(candidates, terms):
        for candidate in candidates:
            if len(evaluated) >= 13:
                raise LongRopeError("the machine went away")
            evaluated.append(candidate)
            yield stub_evaluation(candidate)

    with pytest.raises(LongRopeError, match="went away"):
        run_search(small_search(), failing, journal)
    recovered = len(journal.entries)
    evaluated_before, batches = list(evaluated), []

    def counting(candidates, terms):
        batches.append(list(candidates))
        return stub_objective(candidates)

    outcome = run_search(small_search(), counting, journal)
    again = [candidate for batch in batches for candidate in batch]
    assert not set(again) & set(evaluated_before) and len(again) == 34 - recovered
    cost = SearchCost.of(outcome.entries, flops=2.5)
    assert (outcome.recovered, cost.evaluations, cost.tokens) == (recovered, 34, 34 * 150)
    assert (cost.backward_tokens, cost.flops) == (0, 2.5)
    assert cost.seconds == sum(e.seconds for e in journal.entries)
    undisturbed = run_search(small_search(), stub_objective, MemoryJournal())
    assert (outcome.best, outcome.evaluation) == (undisturbed.best, undisturbed.evaluation)


def test_a_finished_journal_is_only_replayed():
    journal = MemoryJournal()
    first = run_search(small_search(), stub_objective, journal)
    second = run_search(small_search(), lambda *_: pytest.fail("evaluated again"), journal)
    assert (second.best, second.recovered) == (first.best, 34)


def test_a_journal_of_other_candidates_is_refused():
    journal = MemoryJournal()
    run_search(small_search(seed=1), stub_objective, journal)
    with pytest.raises(InputError, match="another candidate"):
        run_search(small_search(seed=2), stub_objective, MemoryJournal(journal.entries))
    other = MemoryJournal()
    run_search(small_search(seed=2), stub_objective, other)
    longer = MemoryJournal([*journal.entries, *other.entries[:1]])
    with pytest.raises(InputError, match="another candidate"):
        run_search(small_search(seed=1), stub_objective, longer)


def test_progress_counts_up_to_the_total():
    seen = []
    run_search(small_search(), stub_objective, MemoryJournal(), on_progress=seen.append)
    assert [p.done for p in seen][:4] == [0, 1, 2, 3] and seen[-1].done == seen[-1].total == 34
    assert seen[0].best_loss is None and seen[0].rate is None and seen[0].eta_seconds is None
    assert seen[-1].eta_seconds == 0 and all(p.rate > 0 for p in seen[1:])
    losses = [p.best_loss for p in seen[1:]]
    assert losses == sorted(losses, reverse=True)
    assert seen[-1].best_perplexity == pytest.approx(math.exp(losses[-1]))


def test_an_objective_that_loses_results_is_refused():
    with pytest.raises(LongRopeError, match="9 evaluations of 10"):
        run_search(small_search(), lambda c, _: stub_objective(c)[:-1], MemoryJournal())


def test_a_search_without_a_usable_result_says_so():
    with pytest.raises(LongRopeError, match="none of 34"):
        run_search(
            small_search(), lambda c, _: [Evaluation((math.nan,), (1,))] * len(c), MemoryJournal()
        )


def test_loss_divides_sums_once():
    evaluation = Evaluation((10.0, 1.0), (1, 9))
    assert evaluation.loss == pytest.approx(1.1) and evaluation.perplexity == pytest.approx(
        math.exp(1.1)
    )
    assert Evaluation((1e6,), (1,)).perplexity == math.inf
    assert not Evaluation((), (), completed=True).usable
    assert stub_evaluation(small_search().ask(1)[0]).tokens == 150


def test_the_room_sees_no_torch_and_no_model():
    foreign = "[m for m in ('torch', 'megatron', 'transformers') if m in sys.modules]"
    code = f"import sys, megatron_longrope.search; print({foreign})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
