"""Checks that layout, engine and precision go together, with each other and with the model."""

from __future__ import annotations

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape, check_shape
from megatron_longrope.model.engine.choice import resolve_backend
from megatron_longrope.model.engine.settings import BackendSettings, Purpose
from megatron_longrope.pipeline.preflight.place import at
from megatron_longrope.pipeline.recipe import FineTuneConfig, Recipe
from megatron_longrope.pipeline.run import TORCH_DTYPES
from megatron_longrope.runtime.gpu_stack import GpuStack


def check_layout(recipe: Recipe, shape: ModelShape, world_size: int) -> None:
    """Raises InputError for a layout that does not fit the processes, the model or its batches."""
    layout = recipe.parallel
    data_parallel = layout.data_parallel(world_size)
    check_shape(layout, shape)
    for number, step in enumerate(recipe.extension):
        with at(f"extension.{number}"):
            layout.check_sequence(step.length)
        if step.fine_tune is not None:
            training = step.fine_tune.training
            with at(f"extension.{number}.fine_tune.training"):
                layout.check_batch(
                    training.global_batch_size, training.micro_batch_size, data_parallel
                )


def check_engine(recipe: Recipe, shape: ModelShape, stack: GpuStack | None = None) -> None:
    """Raises InputError where the engine that a run trains or scores with cannot be built here.

    `stack` is what the machine has; by default it is looked at.
    """
    if not recipe.backend.packed:
        rule = "a run has several pieces in a row, and scores short documents together"
        raise InputError("backend.packed", "false", rule)
    scored = max(recipe.target_length, *recipe.evaluation.lengths)
    _check_backend(recipe, recipe.backend.for_scoring(), shape, "scoring", scored, stack)
    for number, step in enumerate(recipe.extension):
        if step.fine_tune is not None:
            with at(f"extension.{number}.fine_tune"):
                _check_training(recipe, step.fine_tune, shape, stack)


def _check_training(
    recipe: Recipe, config: FineTuneConfig, shape: ModelShape, stack: GpuStack | None
) -> None:
    """Checks the engine of a training, and that its micro-batches have a size FP8 can take."""
    micro_batch, length = config.training.micro_batch_size, config.data.sequence_length
    tokens = micro_batch * length
    multiple = _check_backend(recipe, recipe.backend, shape, "training", tokens, stack)
    if tokens % multiple:
        rule = (
            f"with micro_batch_size={micro_batch}, FP8 ({recipe.backend.fp8}) under this layout "
            f"needs a multiple of {multiple} tokens in a micro-batch"
        )
        raise InputError("data.sequence_length", format_length(length), rule)


def _check_backend(
    recipe: Recipe,
    settings: BackendSettings,
    shape: ModelShape,
    purpose: Purpose,
    sequence_length: int,
    stack: GpuStack | None,
) -> int:
    """Builds the choice of engine, and returns what its batches must be a multiple of in tokens."""
    backend = resolve_backend(
        settings,
        shape,
        recipe.parallel,
        dtype=TORCH_DTYPES[recipe.dtype],
        recompute=recipe.recompute,
        purpose=purpose,
        sliding_window=bool(shape.attention_windows),
        sequence_length=sequence_length,
        stack=stack,
    )
    return backend.token_multiple
