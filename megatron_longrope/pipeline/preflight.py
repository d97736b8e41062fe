"""Everything about a run that can be refused before a model's weights are loaded."""

from __future__ import annotations

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.recipe import Recipe


def check_layout(recipe: Recipe, shape: ModelShape, world_size: int) -> None:
    """Raises InputError for a layout that cannot hold the model, its lengths or its batches, and
    for lengths within the window: before hours go into the stages ahead of the one that would."""
    layout = recipe.parallel
    data_parallel = layout.data_parallel(world_size)
    layout.check_model(
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        ffn_hidden_size=shape.ffn_hidden_size,
    )
    for step in recipe.extension:
        layout.check_sequence(step.length)
        if step.fine_tune is not None:
            training = step.fine_tune.training
            layout.check_batch(training.global_batch_size, training.micro_batch_size, data_parallel)
        if step.length <= shape.context_length:
            window = format_length(shape.context_length)
            rule = f"a target must exceed the model's window of {window} tokens"
            raise InputError("extension.length", format_length(step.length), rule)
