"""megatron-core's pipeline schedules: the one place where micro-batches are put through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_longrope.model.longrope_model import LongRopeModel

Batch = TypeVar("Batch")
Step = Callable[[Iterator[Batch], torch.nn.Module], tuple[torch.Tensor, Callable[..., Any]]]
"""Takes the next micro-batch through one chunk; what it returns with the output is called on the
last chunk's."""


def run_schedule(
    model: LongRopeModel,
    step: Step[Batch],
    batches: Sequence[Batch],
    *,
    chunks: Sequence[torch.nn.Module] | None = None,
    forward_only: bool = False,
) -> list[Any]:
    """Returns, on the last pipeline rank, what was made of each micro-batch's output, in order;
    elsewhere nothing.

    `chunks` are the model's own, or wrapped for data parallelism. Every chunk goes through all the
    batches, so each has an iterator of its own. Their number is a multiple of the layout's
    `micro_batch_divisor`.
    """
    layout = model.runtime.layout
    assert len(batches) % layout.micro_batch_divisor == 0, (
        len(batches),
        layout.micro_batch_divisor,
    )
    through = list(chunks or model.chunks)
    # told, not looked up: megatron-core's own idea of virtual stages is global and stays unset
    run = get_forward_backward_func(
        layout.pipeline_parallel, len(through) if layout.is_interleaved else None
    )
    results: list[Any] = run(
        forward_step_func=step,
        data_iterator=[iter(batches) for _ in through],
        model=through,
        num_microbatches=len(batches),
        seq_length=0,  # each tensor brings its own: variable_seq_lengths
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )
    return results


def filled_up(
    model: LongRopeModel, batches: Sequence[Batch], filler: Callable[[], Batch]
) -> list[Batch]:
    """Returns the batches with as many `filler()` after them as make their number one the schedule
    takes."""
    missing = -len(batches) % model.runtime.layout.micro_batch_divisor
    return [*batches, *(filler() for _ in range(missing))]
