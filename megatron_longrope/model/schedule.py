"""The one place where micro-batches are put through a model, by megatron-core's schedules.

megatron-core picks the schedule by the layout: forward and backward of one micro-batch after the
other without a pipeline, 1F1B with one, interleaved 1F1B with a virtual pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_longrope.model.longrope_model import LongRopeModel

Batch = TypeVar("Batch")
Step = Callable[[Iterator[Batch], torch.nn.Module], tuple[torch.Tensor, Callable[..., Any]]]
"""Takes the next micro-batch through one chunk; returns the output and a function of it.

The function is called with the output of the model's last chunk, on the last pipeline rank only.
For a backward pass it returns three values: the summed loss, the number of tokens in it as an int
tensor, and what `run_schedule` is to return for this micro-batch. With `calculate_per_token_loss`
set in its config, megatron-core leaves such a sum as it is and divides the gradients once, at the
end of the step, by the tokens of all ranks. Where only two values are returned it takes the loss
for a local mean, multiplies it by the context-parallel size and divides it by the number of
micro-batches: gradients then come out too large by that size. Forward-only, the function is called
with `non_loss_data=True` and may return anything.
"""


def run_schedule(
    model: LongRopeModel,
    step: Step[Batch],
    batches: Sequence[Batch],
    *,
    chunks: Sequence[torch.nn.Module] | None = None,
    forward_only: bool = False,
) -> list[Any]:
    """Returns what `step` made of each micro-batch, in order; on the last pipeline rank only.

    On other ranks the list is empty.

    Args:
        model: The model.
        step: Takes the next micro-batch through one chunk, see `Step`.
        batches: Micro-batches; their number is a multiple of the layout's `micro_batch_divisor`.
        chunks: The model's chunks wrapped for data parallelism; by default its own, bare.
        forward_only: Whether the backward pass is left out.
    """
    layout = model.runtime.layout
    assert len(batches) % layout.micro_batch_divisor == 0, (
        len(batches),
        layout.micro_batch_divisor,
    )
    through = list(chunks or model.chunks)
    # The sizes are passed: left out, megatron-core looks them up in its global state, in which a
    # virtual pipeline is never set here.
    run = get_forward_backward_func(
        layout.pipeline_parallel, len(through) if layout.is_interleaved else None
    )
    results: list[Any] = run(
        forward_step_func=step,
        # one for each chunk: every chunk goes through all micro-batches
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
    """Returns the batches, followed by as many `filler()` as the schedule needs.

    The interleaved schedule takes multiples of the pipeline's size only.
    """
    missing = -len(batches) % model.runtime.layout.micro_batch_divisor
    return [*batches, *(filler() for _ in range(missing))]
