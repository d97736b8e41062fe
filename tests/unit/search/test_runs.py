"""A search in a run directory: of one model alone, its baselines scored once, and what it tells at
its start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.data import PasskeyDocument
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import (
    EvaluationDocument,
    ObjectivePart,
    PerplexityObjective,
    documents_sha256,
)
from megatron_longrope.model import LongRopeModel
from megatron_longrope.pipeline.margins import baseline_margins, candidate_of, held_out_margins
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    first_search,
    held_out_objective,
    search_factors,
)
from megatron_longrope.runtime import start_runtime
from megatron_longrope.search import Candidate, Evaluation, SearchOutcome, SearchProgress, Terms
from tests.support.tiny_models import HfWeights, our_model, random_documents, tiny_hf_model

CONFIG = SearchConfig.model_validate(
    {"starts": ["yarn"], "searcher": {"name": "hybrid", "ramp": {"max_rounds": 1}, "cycles": 0}}
)
LENGTH = 256


@pytest.fixture
def model() -> Iterator[LongRopeModel]:
    with start_runtime(threads=1) as runtime:
        yield our_model(
            HfWeights.of(tiny_hf_model()), runtime, angle_precision="float64", scaled=False
        )


class Counting(PerplexityObjective):
    """Keeps the candidates it is asked for; a copy of it keeps them in the same list."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.asked: list[Candidate] = []

    def stream(self, candidates: Sequence[Candidate], terms: Terms) -> Iterator[Evaluation]:
        self.asked += candidates
        return super().stream(candidates, terms)


def objective_of(model: LongRopeModel) -> Counting:
    return Counting(
        model, random_documents(200, 170, 180), target_length=LENGTH, max_batch_tokens=200
    )


SHA256 = documents_sha256(
    [EvaluationDocument("a", tokens) for tokens in random_documents(200, 170, 180)]
)


def search(
    model: LongRopeModel, folder: Path, told: list[SearchProgress] | None = None
) -> tuple[Counting, SearchOutcome]:
    objective = objective_of(model)
    problem = first_search(CONFIG, model.geometry, LENGTH)
    show = None if told is None else told.append
    return objective, search_factors(
        problem, objective, CONFIG, RunDirectory(folder), SHA256, show
    )[1]


def test_a_journal_is_of_one_model(model: LongRopeModel, tmp_path: Path) -> None:
    search(model, tmp_path)
    weight = next(model.parameters())
    with torch.no_grad():
        weight.view(-1)[7] += 1e-3
    with pytest.raises(InputError, match=r"objective\.model\.weights"):
        search(model, tmp_path)
    with torch.no_grad():
        weight.view(-1)[7] -= 1e-3


def test_a_finished_search_and_its_baselines_are_not_scored_again(
    model: LongRopeModel, tmp_path: Path
) -> None:
    problem, directory = first_search(CONFIG, model.geometry, LENGTH), RunDirectory(tmp_path)
    runs = []
    for _ in range(2):
        objective, outcome = search(model, tmp_path)
        rows, cost = baseline_margins(problem, objective, outcome, directory, SHA256)
        runs.append((len(objective.asked), rows, cost, outcome.best))
    (first, *results), (second, *again) = runs
    assert first > 10 and second == 0
    assert results == again
    assert [row.method for row in results[0]] == 2 * [
        "none",
        "pi",
        "ntk",
        "dynamic-ntk:4",
        "yarn",
    ]


def test_held_out_documents_are_scored_once_too(model: LongRopeModel, tmp_path: Path) -> None:
    problem, directory = first_search(CONFIG, model.geometry, LENGTH), RunDirectory(tmp_path)
    documents = [
        EvaluationDocument(name, tokens)
        for name, tokens in zip("xyz", random_documents(260, 270, 256, seed=5), strict=True)
    ]
    _, outcome = search(model, tmp_path)
    asked, margins = [], []
    for _ in range(2):
        objective = Counting(
            model, [document.prefix(LENGTH) for document in documents], target_length=LENGTH
        )
        margins.append(held_out_margins(problem, objective, outcome, directory, documents))
        asked.append(len(objective.asked))
    assert asked[0] == len(set(objective_candidates(problem, outcome))) and asked[1] == 0
    first, second = margins
    assert first == second and first.documents == ("x", "y", "z")
    (best,) = held_out_objective(model, documents, CONFIG, LENGTH)([outcome.best])
    assert first.perplexity == pytest.approx(best.perplexity)
    assert [row.method for row in first.baselines[:2]] == ["none", "pi"]
    assert all(row.low is not None and row.parts == () for row in first.baselines)


def objective_candidates(problem: SearchProblem, outcome: SearchOutcome) -> list[Candidate]:
    """Returns what held-out margins are of: the best, and every baseline with both attention
    factors."""
    own = [
        candidate_of(method.factors_at(LENGTH).for_length(LENGTH)) for method in problem.baselines
    ]
    found = outcome.best.attention_factor
    return [outcome.best, *own, *(replace(each, attention_factor=found) for each in own)]


def test_a_mixture_is_a_score_with_its_parts_and_no_perplexity(
    model: LongRopeModel, tmp_path: Path
) -> None:
    hidden = [
        PasskeyDocument(tokens, len(tokens) - 5, 5, key="")
        for tokens in random_documents(80, 60, seed=9)
    ]
    texts = random_documents(200, 170)
    parts = [ObjectivePart.last_part(texts), ObjectivePart.answers(hidden, 0.5)]
    objective = PerplexityObjective(model, parts, target_length=LENGTH)
    problem, directory = first_search(CONFIG, model.geometry, LENGTH), RunDirectory(tmp_path)
    told: list[SearchProgress] = []
    factors, outcome = search_factors(
        problem, objective, CONFIG, directory, SHA256, told.append, "tiny"
    )
    text, answers = told[-1].best_parts
    assert told[-1].best_perplexity is None and (text.name, answers.name) == ("text", "answers")
    assert outcome.evaluation.loss == pytest.approx((text.loss + 0.5 * answers.loss) / 1.5)
    assert text.perplexity == pytest.approx(math.exp(text.loss)) and answers.perplexity is None
    origin = factors.origin
    assert (origin.model, origin.searcher, origin.scored) == ("tiny", "hybrid", "text, answers")
    assert origin.score == outcome.evaluation.loss
    row = baseline_margins(problem, objective, outcome, directory, SHA256)[0][0]
    assert row.perplexity is None and row.score is not None
    assert [part.name for part in row.parts] == ["text", "answers"]
    # other needles are another objective: their baselines have a journal of their own
    others = [
        ObjectivePart.answers([replace(each, tokens=each.tokens + 1) for each in hidden], 0.5)
    ]
    again = PerplexityObjective(model, [parts[0], *others], target_length=LENGTH)
    with pytest.raises(InputError, match=r"objective\.generated_sha256"):
        search_factors(problem, again, CONFIG, directory, SHA256)
    baseline_margins(problem, again, outcome, directory, SHA256)
    assert len(list((tmp_path / "journals" / "baselines").iterdir())) == 2


def test_a_ladder_is_scored_first_and_counts_nothing(model: LongRopeModel) -> None:
    documents = random_documents(200, 170, 180)
    rungs = [[text[:40] for text in documents], [text[:90] for text in documents]]
    plain = PerplexityObjective(model, documents, target_length=LENGTH, max_batch_tokens=200)
    ladder = PerplexityObjective(
        model, documents, target_length=LENGTH, max_batch_tokens=200, ladder=rungs
    )
    short = [
        PerplexityObjective(model, rung, target_length=LENGTH, max_batch_tokens=200)
        for rung in rungs
    ]
    seed = first_search(CONFIG, model.geometry, LENGTH).seeds[0]
    (whole,), (expected,) = ladder([seed]), plain([seed])
    assert (whole.nll_sums, whole.token_counts, whole.usable) == (
        expected.nll_sums,
        expected.token_counts,
        True,
    )
    assert whole.rungs == pytest.approx([each([seed])[0].loss for each in short], rel=1e-6)
    assert whole.cost_tokens == ladder.cost_tokens == expected.cost_tokens + 3 * (40 + 90)
    (stopped,) = ladder([seed], Terms(judge=lambda partial: len(partial.rungs) == 2))
    assert (stopped.nll_sums, stopped.rungs, stopped.usable) == ((), whole.rungs, False)
    assert Evaluation.from_json(stopped.to_json()) == stopped
    assert ladder.evaluate(seed, Terms(gradient=True)).cost_tokens == expected.cost_tokens
    assert ladder.without_ladder().identity() == plain.identity() != ladder.identity()
    assert ladder.without_ladder().evaluate(seed) == plain.evaluate(seed)


def test_a_resumed_search_says_how_long_from_its_first_moment(
    model: LongRopeModel, tmp_path: Path
) -> None:
    search(model, tmp_path)
    path = RunDirectory(tmp_path).journal(f"search-{LENGTH}")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    told: list[SearchProgress] = []
    search(model, tmp_path, told)
    assert told[0].done == told[0].recovered == 3
    assert told[0].eta_seconds is not None and told[0].eta_seconds > 0
