"""Checks that the rows of each fine-tuning fit the length it trains."""

from __future__ import annotations

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.recipe import Recipe, TrainingDataConfig


def check_training(recipe: Recipe) -> None:
    """Raises InputError where a fine-tuning would see other lengths than its step says."""
    for number, step in enumerate(recipe.extension):
        if step.fine_tune is None:
            continue
        place, data = f"extension.{number}.fine_tune.data", step.fine_tune.data
        check_rows(place, data)
        if data.longest_piece != step.length:
            key = "sequence_length" if data.piece_length is None else "piece_length"
            rule = (
                f"the longest piece of a row must be as long as extension.{number}.length, "
                f"{format_length(step.length)}: that is what the factors are made for"
            )
            raise InputError(f"{place}.{key}", format_length(data.longest_piece), rule)


def check_rows(place: str, data: TrainingDataConfig) -> None:
    """Raises InputError, which names `place`, for pieces or documents longer than the rows."""
    if data.piece_length is not None and data.piece_length > data.sequence_length:
        rule = f"must not exceed sequence_length, {format_length(data.sequence_length)}"
        raise InputError(f"{place}.piece_length", format_length(data.piece_length), rule)
    retrieval = data.retrieval
    if retrieval.share > 0 and retrieval.max_length > data.longest_piece:
        rule = f"must not exceed the longest piece, {format_length(data.longest_piece)} tokens"
        raise InputError(f"{place}.retrieval.max_length", format_length(retrieval.max_length), rule)
