"""YaRN's row with a searched ramp: of YaRN's form, the best that was scored, and no descent's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_longrope.config import build_config
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    best_ramp,
    first_search,
    published_yarn,
    second_interpolation,
    second_search,
)
from megatron_longrope.rope import RopeFactors, Yarn
from megatron_longrope.search import (
    Candidate,
    Evaluation,
    Journal,
    JournalEntry,
    Provenance,
    SearchTask,
    run_search,
)
from tests.support.factor_sets import GEOMETRY, UNSCALED

SETTINGS = {"attention_factor": "searched", "starts": ["yarn"]}
HYBRID = {"name": "hybrid", "ramp": {"max_rounds": 8}, "cycles": 0}
AIM = Yarn(scale=8, beta_fast=9, beta_slow=0.8, truncate=False).factors(GEOMETRY)


def _searched(problem: SearchProblem, config: SearchConfig, aim: RopeFactors, path: Path) -> Path:
    """Leaves the journal of a search whose loss is the squared distance of log λ to `aim`."""

    def scored(candidates: Sequence[Candidate]) -> list[Evaluation]:
        ratios = (np.log(np.divide(each.rescale, aim.rescale)) for each in candidates)
        return [Evaluation((float(1 + ratio @ ratio),), (1,)) for ratio in ratios]

    task = SearchTask(problem.length, problem.length / GEOMETRY.original_length, 1)
    searcher = config.searcher.build(problem.space, problem.seeds, 1, task)
    with Journal.open(path, searcher.identity(), {}) as journal:
        run_search(searcher, lambda batch, terms: iter(scored(batch)), journal)
        better = Candidate(aim.rescale, 0, 1.0)  # what a descent might have come to
        entry = JournalEntry(
            len(journal.entries), better, Provenance(99, "step"), Evaluation((0.5,), (1,)), 0.0, 1
        )
        journal.append(entry)
    return path


@pytest.mark.parametrize("searcher", [HYBRID, {"name": "ramp", "max_rounds": 8}])
def test_it_is_yarn_with_other_betas(searcher: dict[str, object], tmp_path: Path) -> None:
    config = build_config(SearchConfig, {**SETTINGS, "searcher": searcher}, "search")
    problem = first_search(config, GEOMETRY, 2048)
    journal = _searched(problem, config, AIM, tmp_path / "a.jsonl")
    found = best_ramp(journal, published_yarn(UNSCALED, 2048))
    assert found is not None and found.target_length == 2048
    # its two ends in pairs, by a straight line through the share of 1/λ; then the betas by YaRN's
    # own equation, turns = L·base^(−2i/d) / 2π
    share = (1 - 1 / np.array(found.rescale)) / (1 - 1 / 8)
    inner = (share > 1e-9) & (share < 1 - 1e-9)
    slope, offset = np.polyfit(np.flatnonzero(inner), share[inner], 1)
    fast, slow = (
        256 * 10000.0 ** (-2 * at / 64) / (2 * np.pi)
        for at in (-offset / slope, (1 - offset) / slope)
    )
    yarn = Yarn(scale=8, beta_fast=fast, beta_slow=slow, truncate=False).factors(GEOMETRY)
    # searches keep λ to 0.01
    assert found.rescale == pytest.approx(yarn.rescale, rel=5e-3)

    def distance(factors: RopeFactors) -> float:
        return float(np.sum(np.log(np.divide(factors.rescale, AIM.rescale)) ** 2))

    assert distance(found) < 0.1 * distance(published_yarn(UNSCALED, 2048))
    assert found.attention_factor in problem.space.attention_factors


def test_on_fine_tuned_factors_it_rises_from_these(tmp_path: Path) -> None:
    config = build_config(SearchConfig, {**SETTINGS, "searcher": HYBRID}, "search")
    tuned = Yarn(scale=8).factors(GEOMETRY)
    problem = second_search(config, GEOMETRY, 8192, tuned)
    yarn = second_interpolation("yarn", tuned, 8192)
    aim = yarn.model_copy(
        update={
            "rescale": tuple(
                a * b ** (2 / 3) for a, b in zip(tuned.rescale, AIM.rescale, strict=True)
            )
        }
    )
    found = best_ramp(_searched(problem, config, aim, tmp_path / "a.jsonl"), yarn)
    assert found is not None and found.rescale != yarn.rescale
    times = np.divide(found.rescale, tuned.rescale)
    share = np.clip((1 - 1 / times) / (1 - 1 / 4), 0, 1)
    inner = np.flatnonzero((share > 0.01) & (share < 0.99))
    assert len(inner) > 2 and np.diff(share[inner], 2) == pytest.approx(0, abs=0.02)


def test_published_yarn_stays_where_no_move_was_better_and_others_have_no_row(
    tmp_path: Path,
) -> None:
    yarn = published_yarn(UNSCALED, 2048)
    config = build_config(SearchConfig, {**SETTINGS, "searcher": HYBRID}, "search")
    problem = first_search(config, GEOMETRY, 2048)
    found = best_ramp(_searched(problem, config, yarn, tmp_path / "a.jsonl"), yarn)
    assert found is not None and found.rescale == pytest.approx(yarn.rescale, rel=5e-3)
    evolution = {"name": "evolution", "population": 4, "iterations": 2, "parents": 2}
    config = build_config(SearchConfig, {**SETTINGS, "searcher": evolution}, "search")
    problem = first_search(config, GEOMETRY, 2048)
    assert best_ramp(_searched(problem, config, AIM, tmp_path / "b.jsonl"), yarn) is None
