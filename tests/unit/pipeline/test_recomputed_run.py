"""A recipe with recomputation: its searches descend and its attention weights train as without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_longrope.artifacts.metrics import MetricsRow, read_metrics
from megatron_longrope.config import build_config
from megatron_longrope.pipeline.extend import check_recipe, run_recipe_stage
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.run import Progress
from megatron_longrope.runtime import Runtime
from tests.support.tiny_run import TUNED, make_model, make_texts, recipe_values

SEARCH, TRAINING = f"search-{TUNED}-gradient", f"fine-tune-{TUNED}"
KEPT: dict[str, Any] = {"recompute": "none"}
RECOMPUTED: dict[str, Any] = {"recompute": "full", "offload": True}


class Seen(NamedTuple):
    """What the first search and the fine-tuning of a run left."""

    losses: list[float]
    """Of the search's evaluations on all documents, in nats."""
    metrics: list[MetricsRow]


def seen_of(folder: Path, runtime: Runtime, settings: dict[str, Any]) -> Seen:
    texts = make_texts(folder / "texts")
    values = recipe_values(make_model(folder / "model", texts), texts)
    first = values["extension"][0]
    first["search"] = {
        "num_documents": 2,
        "starts": ["yarn"],
        "searcher": {"name": "gradient", "passes": 2},
    }
    first["fine_tune"]["training"]["trainable"] = "attention"
    recipe = build_config(Recipe, {**values, **settings}, "tiny")
    run = folder / "run"
    for stage in check_recipe(recipe, run, world_size=1).stages:
        run_recipe_stage(stage.name, recipe, run, runtime, Progress())
        if stage.name == TRAINING:
            break
    _, *entries = (run / "journals" / f"{SEARCH}.jsonl").read_text().splitlines()
    evaluations = [json.loads(line) for line in entries]
    whole = [each for each in evaluations if len(each["nll_sums"]) == 2]
    losses = [sum(each["nll_sums"]) / sum(each["token_counts"]) for each in whole]
    return Seen(losses, read_metrics(run / "metrics.jsonl"))


def test_a_run_that_recomputes_is_the_run_that_does_not(tmp_path: Path, runtime: Runtime) -> None:
    kept = seen_of(tmp_path / "kept", runtime, KEPT)
    again = seen_of(tmp_path / "again", runtime, RECOMPUTED)
    assert again.losses[0] == kept.losses[0]
    assert again.losses == pytest.approx(kept.losses, rel=1e-5)
    *starts, end = again.losses
    assert end < min(starts)  # it descends
    norms = [[row.grad_norm for row in seen.metrics] for seen in (kept, again)]
    assert len(norms[0]) == 4 and all(norm is not None and norm > 0 for norm in norms[1])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
