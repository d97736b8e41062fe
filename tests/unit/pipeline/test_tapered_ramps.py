"""A search that starts from a taper moves ramps of it, which are not of YaRN's form."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import first_search
from megatron_longrope.pipeline.searching.ramps import best_ramp
from megatron_longrope.rope import Yarn
from megatron_longrope.search import Journal, SearcherChoice, SearchTask, run_search
from tests.support.factor_sets import GEOMETRY
from tests.support.search_stubs import stub_objective


@pytest.mark.parametrize("start", ["cope", "yarn"])
def test_only_ramps_that_end_at_yarns_last_factor_are_yarns(start: str, tmp_path: Path) -> None:
    problem = first_search(SearchConfig(starts=(start,), space="open"), GEOMETRY, 2048)
    choice = SearcherChoice.model_validate({"name": "ramp", "max_rounds": 1})
    searcher = choice.build(problem.space, problem.seeds, 1, SearchTask(2048, 8.0, 2))
    with Journal.open(tmp_path / "journal.jsonl", searcher.identity(), "stub") as journal:
        outcome = run_search(searcher, stub_objective, journal)
    assert any(entry.provenance.origin == "ramp" for entry in outcome.entries)
    found = best_ramp(tmp_path / "journal.jsonl", Yarn(scale=8.0).factors(GEOMETRY))
    assert (found is None) == (start == "cope")
