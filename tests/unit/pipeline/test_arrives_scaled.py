"""A run on a model that arrives with two LongRoPE sets builds on them and compares with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.arrives_scaled import as_it_arrives, by_transformers
from checkpoints_tools.load_any import load_model, model_factors
from megatron_longrope.artifacts.results import aggregate, read_evaluations
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.extend import check_recipe, run_recipe
from megatron_longrope.pipeline.fitting import recipe_for
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.run import Progress
from megatron_longrope.rope import OwnScaling, read_factors
from megatron_longrope.runtime import start_runtime
from tests.support.tiny_run import TARGET, WINDOW, make_model, make_texts, recipe_values

pytestmark = pytest.mark.timeout(420)
ARRIVES, PAIRS, TEMPERATURE = 256, 8, 1.07
ROPE: dict[str, dict[str, Any]] = {
    "longrope": {
        "short_factor": [1.0 + 0.01 * pair for pair in range(PAIRS)],
        "long_factor": [1.0 + 0.2 * pair for pair in range(PAIRS)],
        "original_max_position_embeddings": WINDOW,
        "attention_factor": TEMPERATURE,
    },
    "dynamic": {"factor": 2.0},
}


def _scaled(folder: Path, kind: str, texts: list[Path]) -> Path:
    """A tiny model of window 128 that arrives with this scaling."""
    make_model(folder, texts)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    settings = {"rope_type": kind, **ROPE[kind]}
    config |= {
        "rope_scaling": settings,
        "rope_parameters": settings | {"rope_theta": config["rope_theta"]},
        "max_position_embeddings": ARRIVES,
    }
    file.write_text(json.dumps(config))
    return folder


def _recipe(model: Path, texts: list[Path]) -> Recipe:
    values = recipe_values(model, texts)
    step = values["extension"][0]
    step["length"] = step["fine_tune"]["data"]["sequence_length"] = TARGET
    step["fine_tune"]["short_inputs"] = "pretrained"
    step["search"]["starts"] = ["pi", "yarn"]
    values["extension"] = [step]
    values["evaluation"]["tasks"]["passkey"]["lengths"] = [ARRIVES, TARGET]
    return build_config(Recipe, values, "scaled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("scaled")
    texts = make_texts(folder / "texts")
    recipe = _recipe(_scaled(folder / "model", "longrope", texts), texts)
    with start_runtime(recipe.parallel, threads=1) as runtime:
        run_recipe(recipe, folder / "run", runtime, Progress())
    return recipe, folder / "run"


def test_rows_are_of_the_model_as_it_arrives(finished: tuple[Recipe, Path]) -> None:
    recipe, run = finished
    rows = read_evaluations(run / "evals")
    whole = [row for row in rows.perplexity if row.protocol == "first-token"]
    methods = {(row.model, row.method) for row in whole}
    assert methods == {
        *(("base", name) for name in ("model", "second-pi", "second-ntk", "second-yarn")),
        *(("base", "longrope"), ("extended", "longrope"), ("control", "model")),
        ("exported", "longrope"),
    }
    corpus = check_recipe(recipe, run, 1).inputs.corpus
    for length in (WINDOW, ARRIVES, TARGET):  # the short set, and the long one
        own = as_it_arrives(whole, length)
        ours = aggregate(own, lambda row: None)[None]
        theirs = by_transformers(Path(recipe.model), own, corpus)
        assert math.isclose(ours, theirs, rel_tol=1e-5)
    controls = {row.length for row in whole if row.model == "control"}
    assert controls == {32, WINDOW, ARRIVES}  # up to its own window, not to the pretrained one
    (window,) = {row.window for row in rows.perplexity if row.protocol == "sliding"}
    assert window == ARRIVES
    assert {(row.model, row.method) for row in rows.retrieval} == {
        ("base", "model"),
        ("extended", "longrope"),
        ("exported", "longrope"),
    }


def test_factors_build_on_its_own(finished: tuple[Recipe, Path]) -> None:
    recipe, run = finished
    own = OwnScaling(model_factors(recipe.model))
    searched = read_factors(run / "factors" / f"search-{TARGET}-evolution.json").for_length(TARGET)
    assert all(
        a >= b for a, b in zip(searched.rescale, ROPE["longrope"]["long_factor"], strict=True)
    )
    extended = read_factors(run / "factors" / "extended.json")
    trained = model_factors(run / "checkpoints" / f"fine-tune-{TARGET}")
    # recovered, its own long set as rows up to its window were trained, searched
    assert [entry.up_to for entry in extended.ranges] == [WINDOW, ARRIVES, None]
    assert extended.for_length(ARRIVES) == trained.for_length(ARRIVES)
    assert trained == own.up_to_window(searched)  # rows within its window stay under its own
    assert model_factors(run / "checkpoints" / "control") == own.factor_set


def test_the_result_says_so(finished: tuple[Recipe, Path]) -> None:
    _, run = finished
    result = json.loads((run / "result.json").read_text())
    model = result["model"]
    assert (model["original_length"], model["window"]) == (WINDOW, ARRIVES)
    assert model["scaling"] == "longrope, 2 sets by input length"
    names = [check["name"] for check in result["checks"]]
    assert names.count("short-inputs") == 2 * len([32, WINDOW, ARRIVES])
    page = (run / "report" / "index.html").read_text()
    assert "As it is" in page and "2× what it arrived with (longrope, 2 sets" in page


def test_the_export_gives_transformers_the_losses_of_the_extended_model(
    finished: tuple[Recipe, Path],
) -> None:
    _, run = finished
    exported = OwnScaling(model_factors(run / "export")).factor_set
    extended = read_factors(run / "factors" / "extended.json")
    for length in (WINDOW, TARGET):
        ours, theirs = extended.for_length(length), exported.for_length(length)
        assert theirs.rescale == ours.rescale
        assert theirs.attention_factor == ours.attention_factor


def test_what_cannot_be_is_refused_before_anything_is_done(
    finished: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, _ = finished
    texts = [Path(path) for path in recipe.corpus.documents]

    def check(**changes: object) -> None:
        check_recipe(recipe.model_copy(update=changes), tmp_path / "run", 1)

    inside = recipe.extension[0].model_copy(update={"length": ARRIVES})
    with pytest.raises(InputError, match=r"exceed the model's window of 256 tokens"):
        check(extension=(inside,))
    with pytest.raises(InputError, match=r"export=true: the model arrives with longrope, 2 sets"):
        check(recovery=())
    check(recovery=(), export=False)
    with pytest.raises(InputError, match="must exceed the 256 tokens that the model arrives with"):
        recipe_for(recipe.model, texts, ARRIVES)
    fitted = recipe_for(recipe.model, texts, 4 * ARRIVES)
    assert [step.length for step in fitted.extension] == [2 * ARRIVES, 4 * ARRIVES]
    assert [step.length for step in fitted.recovery] == [ARRIVES]
    dynamic = _scaled(tmp_path / "dynamic", "dynamic", texts)
    with pytest.raises(InputError, match=r"rope_type=dynamic: .*--dynamic-at N"):
        check(model=str(dynamic))
    with pytest.raises(InputError, match=r"rope_type=dynamic"):
        recipe_for(dynamic, texts, 4 * ARRIVES)


def test_a_loaded_model_remembers_what_it_arrived_with(finished: tuple[Recipe, Path]) -> None:
    recipe, run = finished
    with start_runtime(threads=1) as runtime:
        loaded = load_model(recipe.model, runtime, dtype=torch.float32)
        own = loaded.own
        loaded.model.set_factors(read_factors(run / "factors" / "extended.json"))
        assert loaded.own == own and own.window == ARRIVES
        trained = load_model(run / "checkpoints" / "extended", runtime)
    assert trained.own.window == TARGET and trained.own.is_scaled
