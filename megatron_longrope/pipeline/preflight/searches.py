"""Checks that the space and the searcher of every search can be made."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.preflight.place import at
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.stages.searching import SearchFactors
from megatron_longrope.pipeline.stages.stage import Stage


def check_searches(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Raises InputError, which names the step, for a search that cannot be set up.

    Factors that a search builds on are not known yet; others of the same length stand for them.
    """
    for number, step in enumerate(recipe.recovery):
        if step.upper is not None and step.upper < 1:
            rule = "must be 1 or more: that is no scaling"
            raise InputError(f"recovery.{number}.upper", step.upper, rule)
    places = {id(search): place for place, search, _ in recipe.searches}
    for stage in stages:
        if isinstance(stage, SearchFactors):
            with at(f"{places[id(stage.config)]}.search"):
                stage.set_up()
