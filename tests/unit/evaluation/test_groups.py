"""Candidates on several data-parallel groups: what is scored, and by how many of them at a time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.distributed import HashStore

from megatron_longrope.evaluation import PerplexityObjective, dispatch, objective
from megatron_longrope.pipeline.run import geometry_of
from megatron_longrope.search import Candidate, Evaluation, Terms
from megatron_longrope.search.types import Judge
from tests.support import tiny_run

LENGTHS = (200, 70, 130, 90, 110)
SHAPE = tiny_run.SHAPE.model_copy(update={"context_length": 64})


class CallsByThread(threading.local):
    """The number of the next call, which a process counts by itself, and here each thread does."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._numbers)


class Groups:
    """Data-parallel groups as threads with one store, each with a model that keeps count."""

    def __init__(self, size: int, patch: pytest.MonkeyPatch) -> None:
        self.size, self.scored = size, [0] * size
        self._store = HashStore()
        patch.setattr(dispatch, "_CALLS", CallsByThread())
        patch.setattr(objective, "score_documents", self._score)

    def evaluate(self, candidates: Sequence[Candidate], judge: Judge | None) -> list[Evaluation]:
        """Returns what all groups come to, the same on each."""
        # All have begun before any goes on: no thread may do the work of two groups.
        begun = threading.Barrier(self.size)

        def on(group: int) -> list[Evaluation]:
            begun.wait()
            return self._objective(group)(candidates, Terms(judge=judge))

        with ThreadPoolExecutor(self.size) as threads:
            results = list(threads.map(on, range(self.size)))
        assert all(result == results[0] for result in results)
        return results[0]

    def _objective(self, group: int) -> PerplexityObjective:
        runtime = SimpleNamespace(
            store=self._store,
            data_parallel_size=self.size,
            data_parallel_rank=group,
            world_size=self.size,
            leads_group=True,
        )
        model: Any = SimpleNamespace(
            backend=SimpleNamespace(check_searching=lambda: None),
            runtime=runtime,
            shape=SHAPE,
            recompute="none",
            geometry=geometry_of(SHAPE),
            set_factors=lambda factors: None,
        )
        texts = [np.zeros(length, dtype=np.int64) for length in LENGTHS]
        return PerplexityObjective(model, texts, target_length=256, max_batch_tokens=1)

    def _score(self, model: Any, documents: Sequence[Any], **_: Any) -> list[Any]:
        self.scored[model.runtime.data_parallel_rank] += sum(map(len, documents))
        return [SimpleNamespace(nll=np.ones(len(document) - 1)) for document in documents]


def _after(number: int) -> Judge:
    return lambda partial: len(partial.nll_sums) == number


@pytest.mark.parametrize("last", range(1, 6))
@pytest.mark.parametrize("num_candidates", [1, 3])
def test_stopping_saves_on_four_groups_what_it_saves_on_one(
    num_candidates: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = [Candidate((1.0 + number,) * 8) for number in range(num_candidates)]
    alone = Groups(1, monkeypatch)
    expected = alone.evaluate(candidates, _after(last))
    four = Groups(4, monkeypatch)
    found = four.evaluate(candidates, _after(last))
    assert found == expected and [e.cost_tokens for e in found] == [sum(LENGTHS[:last])] * (
        num_candidates
    )
    assert sum(four.scored) == sum(alone.scored) == num_candidates * sum(LENGTHS[:last])
    assert sum(tokens > 0 for tokens in four.scored) <= num_candidates


def test_a_candidate_that_none_may_stop_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups(4, monkeypatch)
    (evaluation,) = groups.evaluate([Candidate((1.0,) * 8)], None)
    assert evaluation.completed and evaluation.forward_equivalents == 1.0
    assert sum(groups.scored) == sum(LENGTHS)
