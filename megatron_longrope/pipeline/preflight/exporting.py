"""Checks that Hugging Face's format can carry what a run will find."""

from __future__ import annotations

from importlib.util import find_spec

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.rope import OwnScaling


def check_export(recipe: Recipe, own: OwnScaling) -> None:
    """Raises InputError where Hugging Face's format could not carry what the run will find.

    A model that arrives with a short set keeps it for inputs that are not recovered, under the
    attention factor it has. The format has one attention factor for short and long inputs.
    """
    for place, search, _ in recipe.searches:
        if recipe.export and search.search_start_tokens:
            rule = "Hugging Face's format has no n̂: leave it out, or set export=false"
            raise InputError(f"{place}.search.search_start_tokens", "true", rule)
    if recipe.export and recipe.evaluation.exported and find_spec("transformers") is None:
        rule = "needs transformers, which is not installed: pip install transformers, or null"
        raise InputError("evaluation.exported", "true", rule)
    recovered = max((step.length for step in recipe.recovery), default=0)
    keeps_short = any((entry.up_to or 0) > recovered for entry in own.short_ranges)
    own_temperature = own.factor_set.ranges[0].factors.attention_factor
    inherits = all(
        step.search.attention_factor in ("inherited", own_temperature) for step in recipe.extension
    )
    if recipe.export and keeps_short and not inherits:
        raise InputError(
            "export",
            "true",
            f"the model arrives with {own.describe()} and one temperature for both, which a search "
            "may change for long inputs alone: use search.attention_factor=inherited, a recovery "
            f"up to {format_length(own.geometry.original_length)} tokens or more, or export=false",
        )
