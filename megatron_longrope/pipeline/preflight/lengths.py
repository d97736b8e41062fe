"""Checks that the lengths of a recipe go together: steps, recoveries, measurements."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.rope import OwnScaling

_SHORTEST = 2
"""Fewest tokens of any input: the first one is not predicted."""


def check_lengths(recipe: Recipe, own: OwnScaling) -> None:
    """Raises InputError where the lengths of a recipe contradict each other or the model's window.

    `own` is the scaling that the model arrives with, and with it its window.
    """
    for number, step in enumerate(recipe.extension):
        if step.length <= own.window:
            rule = f"a target must exceed the model's window of {format_length(own.window)} tokens"
            raise InputError(f"extension.{number}.length", format_length(step.length), rule)
    _check_recovery(recipe)
    for place, search, length in recipe.searches:
        for other in search.mixture:
            if other == length:
                rule = "is the length searched, which has weight 1 already"
                raise InputError(f"{place}.search.mixture", format_length(other), rule)
            _check_shortest(f"{place}.search.mixture", other)
    _check_evaluation(recipe.evaluation, recipe.target_length, own.window)


def _check_recovery(recipe: Recipe) -> None:
    """Checks that recoveries serve lengths of their own, all below the first extended one.

    Each set of factors serves the inputs between the length before it and its own. The extended
    model begins at the length it was tuned for last; at the first step's where nothing is trained.
    """
    tuned = [n for n, step in enumerate(recipe.extension) if step.fine_tune is not None]
    first = tuned[-1] if tuned else 0
    limit, before = recipe.extension[first].length, 0
    for number, step in enumerate(recipe.recovery):
        place, length = f"recovery.{number}.length", format_length(step.length)
        _check_shortest(place, step.length)
        if step.length <= before:
            rule = f"recoveries ascend in length, and the one before is {format_length(before)}"
            raise InputError(place, length, rule)
        if step.length >= limit:
            rule = (
                f"a recovery is for inputs shorter than the {format_length(limit)} of "
                f"extension.{first}.length, whose factors serve that length"
            )
            raise InputError(place, length, rule)
        before = step.length


def _check_evaluation(config: EvaluationConfig, target: int, window: int) -> None:
    _check_measured("evaluation.lengths", config.lengths, target)
    if target not in config.lengths:
        shown = ", ".join(map(format_length, config.lengths)) or "none"
        rule = f"the target length {format_length(target)} must be among them"
        raise InputError("evaluation.lengths", shown, rule)
    _check_measured("evaluation.exported.lengths", config.exported_lengths, target)
    for name, settings in config.tasks.items():
        _check_measured(f"evaluation.tasks.{name}.lengths", settings.lengths, target)
    if config.sliding_stride is not None and config.sliding_stride >= window:
        rule = f"must be below the window that slides, {format_length(window)} tokens"
        raise InputError("evaluation.sliding_stride", config.sliding_stride, rule)
    methods = config.second_interpolations
    for name in methods:
        if methods.count(name) > 1:
            raise InputError("evaluation.second_interpolations", name, "is given twice")


def _check_measured(place: str, lengths: Sequence[int], target: int) -> None:
    for length in lengths:
        _check_shortest(place, length)
        if lengths.count(length) > 1:
            raise InputError(place, format_length(length), "is given twice")
        if length > target:
            rule = f"must not exceed the target length, {format_length(target)}"
            raise InputError(place, format_length(length), rule)


def _check_shortest(place: str, length: int) -> None:
    if length < _SHORTEST:
        rule = f"needs {_SHORTEST} tokens or more: the first one is not predicted"
        raise InputError(place, length, rule)
