"""Searches go on from older journals of the demonstration: the headers are as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope.config import build_config, read_yaml
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    first_search,
    recovery_search,
    second_search,
)
from megatron_longrope.presets import recipe_path
from megatron_longrope.rope import factors_from_json
from megatron_longrope.search import SearchTask
from tests.support.factor_sets import GEOMETRY, UNSCALED

HEADERS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "demo_searches.json").read_text(encoding="utf-8")
)
"""The searcher's part of each journal's first line, and the factors that the later two build on."""


@pytest.mark.parametrize("name", ["search-2048", "search-8192", "recover-256"])
def test_headers_are_to_the_letter_what_they_were(name: str) -> None:
    values = read_yaml(recipe_path("demo"))
    # the recipe that these journals were of: it searched the attention factor, from 2k on
    values["extension"][0]["search"]["attention_factor"] = "searched"
    values["extension"][1]["search"] |= {"attention_factor": "searched", "sharper_starts": [1.26]}
    recipe = build_config(Recipe, values, "demo")
    tuned = factors_from_json(HEADERS["tuned"], "demo").for_length(2048)
    first, second, recovery = *recipe.extension, recipe.recovery[0]
    problems: dict[str, SearchProblem] = {
        "search-2048": first_search(first.search, GEOMETRY, 2048),
        "search-8192": second_search(second.search, GEOMETRY, 8192, tuned),
        "recover-256": recovery_search(recovery.search, UNSCALED, 256, tuned, None),
    }
    config = {"search-2048": first, "search-8192": second, "recover-256": recovery}[name].search
    problem = problems[name]
    task = SearchTask(problem.length, problem.length / 256, config.num_documents)
    identity = config.searcher.build(problem.space, problem.seeds, config.seed, task).identity()
    assert json.dumps(identity) == json.dumps(HEADERS[name])
