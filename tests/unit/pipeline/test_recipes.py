"""Shipped recipes are valid, and mistakes in one are named."""

from __future__ import annotations

import json

import pytest

from megatron_longrope.errors import InputError


def test_shipped_recipes_are_valid() -> None:
    from megatron_longrope.config import build_config, read_yaml
    from megatron_longrope.pipeline.pretraining import TrainRecipe
    from megatron_longrope.pipeline.recipe import Recipe
    from megatron_longrope.presets import recipe_names, recipe_path

    for name in recipe_names():
        kind = TrainRecipe if name == "demo-model" else Recipe
        config = build_config(kind, read_yaml(recipe_path(name)), name)
        assert config.name == name and json.dumps(config.model_dump(mode="json"))


def test_temperatures_of_a_first_search_are_not_times_a_fine_tuned_one() -> None:
    from megatron_longrope.config import build_config, read_yaml
    from megatron_longrope.pipeline.recipe import Recipe
    from megatron_longrope.presets import recipe_path

    values = read_yaml(recipe_path("demo"))
    values["extension"][0]["search"]["sharper_starts"] = [1.3]
    recipe = build_config(
        Recipe, values, "demo"
    )  # of a model that arrives scaled it would be right
    with pytest.raises(InputError, match="is for searches beyond a fine-tuned length"):
        recipe.check_searches(arrives_scaled=False)
    recipe.check_searches(arrives_scaled=True)


def test_a_misspelt_key_of_a_step_is_answered_with_the_keys_there() -> None:
    from megatron_longrope.config import build_config, read_yaml
    from megatron_longrope.pipeline.recipe import Recipe
    from megatron_longrope.presets import recipe_path

    values = read_yaml(recipe_path("demo"))
    values["extension"][1]["search"]["searcher"]["ramp"] = {"max_round": 1}
    with pytest.raises(InputError, match="known here: first_step, last_step, max_rounds"):
        build_config(Recipe, values, "demo")
