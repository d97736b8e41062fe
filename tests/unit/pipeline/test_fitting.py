"""A shipped recipe fitted to a model's window, target and documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrope.config import build_config, read_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.fitting import PROGRESSIVE, fit_to_window, recipe_for
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.presets import recipe_path


@pytest.mark.parametrize(
    ("window", "target", "lengths"),
    [
        (256, 8192, [2048, 8192]),
        (4096, 32768, [8192, 32768]),
        (8192, 32768, [16384, 32768]),
        (2048, 4096, [4096]),
        (2048, 3072, [3072]),
        (2048, 100016, [24960, 100016]),
    ],
)
def test_lengths_follow_window_and_target(window: int, target: int, lengths: list[int]) -> None:
    values = read_yaml(recipe_path(PROGRESSIVE))
    recipe = build_config(Recipe, fit_to_window(values, window, target))
    assert [step.length for step in recipe.extension] == lengths
    tuned = recipe.extension[0].fine_tune
    assert tuned is not None and tuned.data.sequence_length == lengths[0]
    assert [step.length for step in recipe.recovery] == [window]
    # documents are sure to reach the target, and no more
    assert recipe.recovery[0].search.windows_per_document * window <= target
    assert recipe.evaluation.lengths == tuple(sorted({window, *lengths}))
    assert values == read_yaml(recipe_path(PROGRESSIVE))  # what came in is as it was


def test_model_documents_and_settings_are_put_in(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("b.txt", "a.txt"):
        (tmp_path / "texts" / name).write_text("text")
    recipe = recipe_for(
        "preset:demo",
        [tmp_path / "texts"],
        4096,
        settings=[("extension.0.fine_tune.training.steps", 30), ("corpus.num_search", 2)],
    )
    assert recipe.model == "preset:demo" and recipe.name == "demo-4k"
    assert [Path(path).name for path in recipe.corpus.documents] == ["a.txt", "b.txt"]
    assert recipe.corpus.num_search == 2
    tuned = recipe.extension[0].fine_tune
    assert tuned is not None and tuned.training.steps == 30
    assert [step.length for step in recipe.extension] == [1024, 4096]


def test_of_another_recipe_the_last_step_gets_the_target(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    recipe = recipe_for("some/model", [tmp_path / "a.txt"], 131072, recipe="smollm2-64k")
    assert [step.length for step in recipe.extension] == [32768, 131072]
    assert recipe.evaluation.task_lengths("passkey") == (2048, 8192, 32768, 65536, 131072)
    shorter = recipe_for("some/model", [tmp_path / "a.txt"], 49152, recipe="smollm2-64k")
    assert shorter.evaluation.task_lengths("passkey") == (2048, 8192, 32768, 49152)
    assert shorter.evaluation.lengths[-1] == 49152


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([("extension.7.length", 4)], "extension.7.length"),
        ([("extension.0.fine_tune.training.stepz", 4)], "stepz"),
    ],
)
def test_a_wrong_setting_is_named(
    settings: list[tuple[str, object]], said: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=said):
        recipe_for("preset:demo", [tmp_path / "a.txt"], 4096, settings=settings)
