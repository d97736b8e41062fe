"""A run directory that was begun with another recipe is refused as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.config import apply_settings, build_config
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.extend import check_recipe, run_recipe, run_recipe_stage
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.run import Progress
from megatron_longrope.runtime import Runtime
from tests.support.tiny_run import make_model, make_texts, recipe_values

_STAGES = ("import", "search-256-evolution", "data-fine-tune-256", "fine-tune-256")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("begun")
    texts = make_texts(folder / "texts")
    return recipe_values(make_model(folder / "model", texts), texts)


@pytest.fixture(scope="module")
def begun(
    values: dict[str, Any], runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """A run directory in which the first stages are done."""
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    recipe = build_config(Recipe, values)
    for name in _STAGES:
        run_recipe_stage(name, recipe, directory.root, runtime, Progress())
    return directory


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("extension.0.search.seed", 7, "stage search-256-evolution=search.seed: "),
        (
            "extension.0.fine_tune.training.learning_rate",
            2e-3,
            "stage data-fine-tune-256=training.learning_rate: this input changed since the run "
            "began (0.001 → 0.002)",
        ),
        ("dtype", "bfloat16", "stage search-256-evolution=dtype: "),
        ("seed", 7, "stage data-fine-tune-256=seed: "),
    ],
)
@pytest.mark.parametrize("how", ["run", "stage", "check"])
def test_another_recipe_changes_nothing(
    key: str,
    value: object,
    said: str,
    how: str,
    values: dict[str, Any],
    begun: RunDirectory,
    runtime: Runtime,
) -> None:
    recipe = build_config(Recipe, apply_settings(values, [(key, value)]))
    before = {path: path.read_bytes() for path in begun.root.rglob("*") if path.is_file()}
    begin: dict[str, Callable[[], object]] = {
        "run": lambda: run_recipe(recipe, begun.root, runtime, Progress()),
        "stage": lambda: run_recipe_stage("import", recipe, begun.root, runtime, Progress()),
        "check": lambda: check_recipe(recipe, begun.root, 1),
    }
    with pytest.raises(InputError) as refused:
        begin[how]()
    assert str(refused.value).startswith(said)
    assert {path: path.read_bytes() for path in begun.root.rglob("*") if path.is_file()} == before


def test_what_no_finished_stage_depends_on_may_change(
    values: dict[str, Any], begun: RunDirectory
) -> None:
    settings = [("evaluation.num_documents", 1), ("recovery.0.search.seed", 7)]
    checked = check_recipe(build_config(Recipe, apply_settings(values, settings)), begun.root, 1)
    assert checked.inputs.directory == begun


def test_weights_trained_again_with_other_settings_are_not_taken_for_the_same(
    values: dict[str, Any], begun: RunDirectory
) -> None:
    recipe = build_config(Recipe, values)
    checked = check_recipe(recipe, begun.root, 1)
    evaluate = next(stage for stage in checked.stages if stage.kind == "search")
    searches = {stage.name: stage for stage in checked.stages if stage.kind == "search"}
    on_base = evaluate.fingerprint(checked.inputs)
    assert on_base["trained_from"] == {}
    tuned = searches["search-512-evolution"].fingerprint(checked.inputs)
    assert tuned["trained_from"].keys() == {"fine-tune-256"}  # type: ignore[attr-defined]
    marker = begun.stage("fine-tune-256")
    text = marker.read_text(encoding="utf-8")
    try:
        other = json.loads(text)
        other["inputs"]["training"]["learning_rate"] = 2e-3
        marker.write_text(json.dumps(other), encoding="utf-8")
        again = searches["search-512-evolution"].fingerprint(replace(checked.inputs))
    finally:
        marker.write_text(text, encoding="utf-8")
    assert again["trained_from"] != tuned["trained_from"]
    assert {key: value for key, value in again.items() if key != "trained_from"} == {
        key: value for key, value in tuned.items() if key != "trained_from"
    }
