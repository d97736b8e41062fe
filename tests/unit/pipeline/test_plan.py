"""The stages of a run, from its recipe alone: their order, what they read and leave, their cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope.config import build_config, read_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.model.flops import PassFlops
from megatron_longrope.pipeline.plan import plan, stages_before
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.run import geometry_of
from megatron_longrope.pipeline.stages.stage import Stage
from megatron_longrope.presets import recipe_names, recipe_path
from megatron_longrope.rope import NoScaling, OwnScaling
from tests.support.tiny_run import SHAPE, TUNED, recipe_values

OWN = OwnScaling(NoScaling().factor_set(geometry_of(SHAPE)))
TRAINED = ["import", "search-256-evolution", "data-fine-tune-256", "fine-tune-256"]
CONTROL = ["data-control", "control"]
LATER = ["search-512-evolution", "recover-128-evolution", "extended", "evaluate"]


def _values() -> dict[str, Any]:
    return recipe_values(Path("model"), [Path("a.txt")])


def _plan(values: dict[str, Any]) -> tuple[Stage, ...]:
    return plan(build_config(Recipe, values), SHAPE, OWN)


def test_stages_come_in_the_order_they_are_done() -> None:
    names = [stage.name for stage in _plan(_values())]
    assert names == [*TRAINED, *CONTROL, *LATER, "export", "evaluate-export", "report"]
    values = _values() | {"export": False}
    values["extension"][0]["fine_tune"]["control"] = False
    assert [stage.name for stage in _plan(values)] == [*TRAINED, *LATER, "report"]


def test_without_training_everything_is_searched_on_the_pretrained_model() -> None:
    values = _values()
    values["extension"][0].pop("fine_tune")
    values["extension"][1]["search"].pop("attention_factor")
    stages = {stage.name: stage for stage in _plan(values)}
    assert {stages[name].checkpoint for name in stages if stages[name].kind == "search"} == {"base"}
    recovery = stages["recover-128-evolution"]
    assert "factors/search-512-evolution.json" in recovery.inputs


@pytest.mark.parametrize("name", ["tiny", *sorted({*recipe_names()} - {"demo-model"})])
def test_every_input_is_an_output_of_an_earlier_stage(name: str) -> None:
    values = _values() if name == "tiny" else read_yaml(recipe_path(name))
    stages = _plan(values)
    left: set[str] = set()
    for stage in stages:
        assert {*stage.inputs} <= left, stage.name
        assert stage.checkpoint is None or f"checkpoints/{stage.checkpoint}" in stage.inputs
        assert stage.outputs
        left |= {*stage.outputs}
    assert json.loads(json.dumps([stage.to_json() for stage in stages]))[0]["name"] == "import"


def test_a_stage_depends_on_what_it_reads_alone() -> None:
    stages = _plan(_values())
    by_name = {stage.name: stage for stage in stages}
    before = {name: [s.name for s in stages_before(stages, by_name[name])] for name in by_name}
    assert before["import"] == before["data-control"] == []
    assert before["fine-tune-256"] == TRAINED[:3]
    assert before["control"] == ["import", "data-control"]
    assert before["search-512-evolution"] == TRAINED
    assert before["extended"] == [*TRAINED, *LATER[:2]]
    assert before["report"] == [*TRAINED, *CONTROL, *LATER, "export", "evaluate-export"]


def test_searches_cost_what_their_searcher_asks_for() -> None:
    costs = {stage.name: stage.cost for stage in _plan(_values())}
    first = costs["search-256-evolution"]
    # six candidates and one generation of four, each on two documents
    assert (first.evaluations, first.tokens, first.backward_tokens) == (10, 10 * 2 * TUNED, 0)
    assert first.flops == pytest.approx(10 * 2 * SHAPE.forward_flops(TUNED))
    # and the answer of a passkey document
    assert costs["search-512-evolution"].tokens == 10 * 3 * 512


def test_a_descent_costs_backward_passes_over_some_of_the_documents() -> None:
    values = _values()
    descent = {"passes": 4, "documents_per_step": 1, "checks": 1}
    values["extension"][0]["search"] = {
        "num_documents": 2,
        "searcher": {"name": "hybrid", "ramp": {"max_rounds": 0}, "descent": descent},
        "starts": ["yarn"],
    }
    cost = next(stage.cost for stage in _plan(values) if stage.kind == "search")
    # YaRN, whose attention factor is the fixed one here; seven steps on a document each; a check
    assert cost.evaluations == 1 + 7 + 1
    assert cost.backward_tokens == 7 * TUNED
    assert cost.tokens == (2 + 7 + 2) * TUNED
    forward = SHAPE.forward_flops(TUNED)
    both = PassFlops(SHAPE, TUNED).with_backward("factors", "none")
    assert cost.flops == pytest.approx(4 * forward + 7 * both)
    again = next(
        stage.cost for stage in _plan(values | {"recompute": "full"}) if stage.kind == "search"
    )
    assert again.flops > 1.2 * cost.flops and again.tokens == cost.tokens


def test_texts_and_rungs_of_a_search_cost_by_their_own_length() -> None:
    values = _values()
    search = values["extension"][0]["search"]
    search |= {"mixture": {"64": 0.5}, "early_stopping": {"ladder": ["32", "96"]}}
    cost = next(stage.cost for stage in _plan(values) if stage.kind == "search")
    lengths = [TUNED, 64, 32, 96]
    assert cost.tokens == 10 * 2 * sum(lengths)
    assert cost.flops == pytest.approx(10 * 2 * sum(map(SHAPE.forward_flops, lengths)))


def test_training_costs_what_is_trained_and_what_is_computed_again() -> None:
    costs = {}
    for trainable in ("all", "attention"):
        for recompute in ("none", "selective", "full"):
            values = _values() | {"recompute": recompute}
            values["extension"][0]["fine_tune"]["training"]["trainable"] = trainable
            cost = next(stage.cost for stage in _plan(values) if stage.name == "fine-tune-256")
            assert cost.tokens == cost.backward_tokens == 4 * 2 * TUNED
            row = PassFlops(SHAPE, TUNED).with_backward(trainable, recompute)
            assert cost.flops == pytest.approx(4 * 2 * row)
            costs[trainable, recompute] = cost.flops
    for trainable in ("all", "attention"):
        kinds = [costs[trainable, recompute] for recompute in ("none", "selective", "full")]
        assert kinds == sorted(set(kinds))
    assert costs["attention", "none"] < costs["all", "none"]


def test_two_controls_are_refused() -> None:
    values = _values()
    second = json.loads(json.dumps(values["extension"][0]))
    second["length"] = second["fine_tune"]["data"]["sequence_length"] = 512
    values["extension"] = [values["extension"][0], second]
    with pytest.raises(InputError, match="one step trains a control"):
        _plan(values)
