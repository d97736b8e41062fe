"""The same journal on any number of data-parallel ranks, and the same gradient under every
layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import PerplexityObjective
from megatron_longrope.model.fingerprint import model_identity
from megatron_longrope.pipeline.searching import shared_journal
from megatron_longrope.rope import AnglePrecision
from megatron_longrope.runtime import ParallelLayout, start_runtime
from megatron_longrope.search import (
    Candidate,
    EarlyStopping,
    Journal,
    MemoryJournal,
    Searcher,
    SearcherChoice,
    SearchSpace,
    SearchTask,
    read_journal,
    run_search,
)
from tests.support.factor_gradients import factors, gradient_of, relative_error
from tests.support.spawn import run_distributed
from tests.support.tiny_models import HfWeights, our_model, random_documents, tiny_hf_model

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
CHOICES = {
    "hybrid": {
        "name": "hybrid",
        "ramp": {"max_rounds": 1},
        "descent": {"passes": 2, "checks": 2},
        "rounds": 2,
        "mutants": 5,
    },
    "two at a time": {"name": "gradient", "passes": 2, "documents_per_step": 2, "checks": 1},
    "evolution": {
        "name": "evolution",
        "population": 16,
        "mutants": 5,
        "crossovers": 4,
        "parents": 6,
        "iterations": 2,
    },
}


def searcher(name: str) -> Searcher:
    space = SearchSpace.first_stage(8, 4.0)
    seeds = [Candidate((4.0,) * 8), Candidate(tuple(np.linspace(1.0, 4.0, 8)), 0, 1.1)]
    task = SearchTask(length=200, scale=4.0, num_documents=4)
    return SearcherChoice.model_validate(CHOICES[name]).build(space, seeds, 1, task)


def search(layout: ParallelLayout, weights: HfWeights, folder: Path) -> None:
    """Runs on every rank: both searches, the main rank with a journal file."""
    angles: AnglePrecision = "float64"
    with start_runtime(layout, threads=1) as runtime:
        model = our_model(weights, runtime, angle_precision=angles, scaled=False)
        documents = random_documents(200, 70, 130, 90, seed=4)
        for name in CHOICES:
            ladder = [[document[:40] for document in documents]] if name == "evolution" else []
            objective = PerplexityObjective(
                model, documents, target_length=256, max_batch_tokens=200, ladder=ladder
            )
            stopping = EarlyStopping(error_level=0.3)
            if runtime.is_main:
                with Journal.open(
                    folder / f"{name}.jsonl", searcher(name).identity(), objective.identity()
                ) as journal:
                    run_search(searcher(name), objective.stream, journal, stopping=stopping)
            else:
                run_search(searcher(name), objective.stream, MemoryJournal(), stopping=stopping)
            runtime.barrier()


def timeless(path: Path) -> list[dict[str, object]]:
    return [{**entry.to_json(), "seconds": None} for entry in read_journal(path)[1]]


def test_journals_are_identical_on_one_two_and_four_ranks(tmp_path: Path) -> None:
    weights = HfWeights.of(tiny_hf_model())
    for ranks in (1, 2, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        if ranks == 1:
            search(ParallelLayout(), weights, folder)
        else:
            run_distributed(ranks, search, ParallelLayout(), weights, folder)
    for name in CHOICES:
        journals = [timeless(tmp_path / str(ranks) / f"{name}.jsonl") for ranks in (1, 2, 4)]
        assert journals[0] == journals[1] == journals[2]
    stopped = [entry["completed"] for entry in timeless(tmp_path / "4" / "evolution.jsonl")]
    assert False in stopped and True in stopped
    places = {len(entry["nll_sums"]) for entry in timeless(tmp_path / "4" / "evolution.jsonl")}  # type: ignore[arg-type]
    assert 0 in places and len(places) >= 2, "some are stopped on the ladder"
    samples = [
        entry["sample"] for entry in timeless(tmp_path / "4" / "hybrid.jsonl") if entry["gradient"]
    ]
    assert sorted(samples[:4]) == [[0], [1], [2], [3]]
    assert len({document for (document,) in samples[4:]}) == 3, (
        "the last step, at rate 0, is not taken"
    )
    pairs = [
        entry["sample"]
        for entry in timeless(tmp_path / "4" / "two at a time.jsonl")
        if entry["gradient"]
    ]
    assert sorted(pairs[0] + pairs[1]) == [0, 1, 2, 3]


def test_groups_of_two_context_ranks_score_as_one_process(tmp_path: Path) -> None:
    weights = HfWeights.of(tiny_hf_model())
    for name in ("one", "four"):
        (tmp_path / name).mkdir()
    search(ParallelLayout(), weights, tmp_path / "one")
    run_distributed(4, search, ParallelLayout(context_parallel=2), weights, tmp_path / "four")
    for name in CHOICES:
        alone, spread = (
            read_journal(tmp_path / folder / f"{name}.jsonl")[1] for folder in ("one", "four")
        )
        same = [(a, b) for a, b in zip(alone, spread, strict=True) if a.candidate == b.candidate]
        # a last bit of a gradient moves all that follows; where the scores alone decide, every
        # candidate is the same
        assert len(same) == len(alone) or (name != "evolution" and len(same) >= 3)
        for a, b in ((a.evaluation, b.evaluation) for a, b in same):
            assert len(b.nll_sums) == len(a.nll_sums) and b.rungs == pytest.approx(
                a.rungs, rel=1e-6
            )
            assert b.loss == pytest.approx(a.loss, rel=1e-6, nan_ok=True), (
                "not a number where the ladder was the end"
            )


def identities(
    layout: ParallelLayout, weights: HfWeights, folder: Path
) -> tuple[dict[str, object], list[str]]:
    """Runs on every rank: what the model is known by, and what the two journals of the evolution
    are met with."""
    met = []
    with start_runtime(layout, threads=1) as runtime:
        model = our_model(weights, runtime, scaled=False)
        for name in ("own", "other"):
            try:
                with shared_journal(
                    runtime, folder / f"{name}.jsonl", searcher("evolution").identity(), {}
                ):
                    met.append("opened")
            except InputError as refused:
                met.append(str(refused))
        return model_identity(model), met


@pytest.mark.parametrize(
    "layout",
    [ParallelLayout(tensor_parallel=2), ParallelLayout(pipeline_parallel=2), ParallelLayout()],
    ids=["TP2", "PP2", "DP2"],
)
def test_a_model_is_known_under_every_layout_and_a_journal_refused_on_all_ranks(
    layout: ParallelLayout, tmp_path: Path
) -> None:
    weights = HfWeights.of(tiny_hf_model())
    with Journal.open(tmp_path / "other.jsonl", searcher("hybrid").identity(), {}):
        pass
    alone, (own, other) = identities(ParallelLayout(), weights, tmp_path)
    assert own == "opened" and "other.jsonl" in other
    assert run_distributed(2, identities, layout, weights, tmp_path) == [(alone, [own, other])] * 2


def gradients(layout: ParallelLayout, weights: HfWeights) -> list[np.ndarray]:
    """Runs on every rank: the gradient by λ and t of the float64 model, without and with n̂."""
    with start_runtime(layout, threads=1) as runtime:
        model = our_model(
            weights, runtime, angle_precision="float64", dtype=torch.float64, scaled=False
        )
        return [gradient_of(model, factors(start_tokens)) for start_tokens in (0, 12)]


@pytest.mark.parametrize(
    "layout",
    [
        ParallelLayout(tensor_parallel=2),
        ParallelLayout(tensor_parallel=2, sequence_parallel=True),
        ParallelLayout(pipeline_parallel=2),
    ],
    ids=["TP2", "TP2+SP", "PP2"],
)
def test_gradients_equal_the_single_process(layout: ParallelLayout) -> None:
    weights = HfWeights.of(tiny_hf_model())
    single = gradients(ParallelLayout(), weights)
    for rank in run_distributed(2, gradients, layout, weights):
        for found, expected in zip(rank, single, strict=True):
            assert relative_error(found, expected) < 1e-9
