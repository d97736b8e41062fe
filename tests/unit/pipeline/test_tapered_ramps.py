"""Only what is of YaRN's form counts as YaRN with another ramp, whatever a search started from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import SearchProblem, first_search
from megatron_longrope.pipeline.searching.ramps import best_ramp
from megatron_longrope.rope import METHODS, RopeFactors, RopeGeometry, Yarn
from megatron_longrope.search import (
    Candidate,
    Evaluation,
    Journal,
    JournalEntry,
    SearcherChoice,
    SearchTask,
    run_search,
)
from tests.support.factor_sets import GEOMETRY
from tests.support.search_stubs import stub_objective

SCALE = 8.0
GEOMETRIES = (
    GEOMETRY,
    RopeGeometry(base=10000.0, head_dim=128, original_length=4096),
    RopeGeometry(base=500000.0, head_dim=128, original_length=8192),
    RopeGeometry(base=1000000.0, head_dim=64, original_length=2048),
)


def _problem(*starts: str, geometry: RopeGeometry = GEOMETRY) -> SearchProblem:
    config = SearchConfig.model_validate({"starts": starts, "space": "open"})
    return first_search(config, geometry, int(SCALE) * geometry.original_length)


def _best_at(aim: RopeFactors, attention_factor: float) -> object:
    """An objective whose loss is the squared distance to the λ and t of `aim`, with λ in 1/λ."""

    def scored(candidates: Sequence[Candidate], terms: object = None) -> list[Evaluation]:
        losses = (
            np.sum((1 / np.array(each.rescale) - 1 / np.array(aim.rescale)) ** 2)
            + (each.attention_factor - attention_factor) ** 2
            for each in candidates
        )
        return [Evaluation((float(1 + loss),), (1,)) for loss in losses]

    return scored


def _search(problem: SearchProblem, objective: object, path: Path) -> list[JournalEntry]:
    choice = SearcherChoice.model_validate({"name": "ramp", "max_rounds": 4})
    searcher = choice.build(problem.space, problem.seeds, 1, SearchTask(2048, SCALE, 2))
    with Journal.open(path, searcher.identity(), "stub") as journal:
        return list(run_search(searcher, objective, journal).entries)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["cope", "yarn"])
def test_only_ramps_that_end_at_yarns_last_factor_are_yarns(start: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    entries = _search(_problem(start), stub_objective, path)
    assert any(entry.provenance.origin == "ramp" for entry in entries)
    found = best_ramp(path, Yarn(scale=SCALE).factors(GEOMETRY))
    assert (found is None) == (start == "cope")


@pytest.mark.parametrize("start", ["pi", "ntk", "cope"])
def test_the_best_start_may_be_another_method(start: str, tmp_path: Path) -> None:
    yarn, aim = (METHODS[name].from_scale(SCALE).factors(GEOMETRY) for name in ("yarn", start))
    path = tmp_path / "journal.jsonl"
    entries = _search(_problem("yarn", start), _best_at(aim, 1.2), path)
    best = min(entries, key=lambda entry: entry.evaluation.loss)
    assert best.candidate.rescale != pytest.approx(yarn.rescale, rel=0.01)
    found = best_ramp(path, yarn)
    if start != "ntk":  # PI's λ has no ramp, and ramps from CoPE rise to 10⁶
        assert found is None
        return
    # its ramps rise as high as YaRN's: 1/λ is linear from 1 to 1/s between two places
    assert found is not None
    share = (1 - 1 / np.array(found.rescale)) / (1 - 1 / SCALE)
    inner = np.flatnonzero((share > 0.02) & (share < 0.98))
    line = np.polyval(np.polyfit(inner, share[inner], 1), inner)
    assert share[inner] == pytest.approx(line, abs=0.01)
    published = min(
        entry.evaluation.loss
        for entry in entries
        if entry.candidate.rescale == pytest.approx(yarn.rescale, abs=0.0051)
    )
    (chosen,) = (
        entry.evaluation.loss
        for entry in entries
        if entry.candidate == Candidate(found.rescale, 0, found.attention_factor)
    )
    assert chosen <= published


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_yarn_as_published_is_found_on_the_grid(geometry: RopeGeometry, tmp_path: Path) -> None:
    yarn = Yarn(scale=SCALE).factors(geometry)
    path = tmp_path / "journal.jsonl"
    problem = _problem("yarn", geometry=geometry)
    _search(problem, _best_at(yarn, yarn.attention_factor), path)
    found = best_ramp(path, yarn)
    own = Candidate(yarn.rescale, 0, yarn.attention_factor)
    assert found is not None and found.rescale == problem.space.project(own).rescale


def test_without_yarn_among_the_starts_there_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    ntk = METHODS["ntk"].from_scale(SCALE).factors(GEOMETRY)
    entries = _search(_problem("ntk"), _best_at(ntk, 1.2), path)
    assert any(entry.provenance.origin == "ramp" for entry in entries)
    assert best_ramp(path, Yarn(scale=SCALE).factors(GEOMETRY)) is None


def test_a_space_with_a_form_of_its_own_has_no_yarn(tmp_path: Path) -> None:
    config = SearchConfig.model_validate({"starts": ["yarn"], "space": "longrope2"})
    path = tmp_path / "journal.jsonl"
    _search(first_search(config, GEOMETRY, 2048), stub_objective, path)
    assert best_ramp(path, Yarn(scale=SCALE).factors(GEOMETRY)) is None
