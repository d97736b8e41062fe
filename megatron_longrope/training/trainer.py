"""The training loop: each step depends on weights, optimizer state and the step's number alone."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrope.data.batches import DocumentBatch, PackedBatches
from megatron_longrope.errors import LongRopeError
from megatron_longrope.model import LongRopeModel
from megatron_longrope.model.forward import run_stage, share_of
from megatron_longrope.model.schedule import run_schedule
from megatron_longrope.training.config import TrainingConfig
from megatron_longrope.training.optimizer import set_rates, wrap_for_training


@dataclass(frozen=True)
class StepReport:
    """The result of one optimizer step."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """Nats per predicted token over the global batch, before the update."""
    gradient_norm: float
    """Norm of the gradient before it is clipped."""
    learning_rate: float
    tokens: int
    """Number of predicted tokens in the global batch."""
    seconds: float


@dataclass
class TrainState:
    """What a training needs to continue, beside weights and optimizer."""

    step: int = 0
    """Number of steps done."""
    tokens: int = 0
    """Number of predicted tokens so far."""
    batches: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The state of the `PackedBatches`."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as values of JSON."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.step, self.tokens, self.batches = (
            int(state["step"]),
            int(state["tokens"]),
            dict(state["batches"]),
        )


class Callback(Protocol):
    """Something that is called after each step, on every rank."""

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        """Takes the step's report; raises InterruptedRunError to stop the training."""
        ...


class Trainer:
    """Trains one model on packed rows under the factors in force.

    Random state needs no saving: each step is seeded from the config's seed and its own number.
    Callbacks are called in the order given. Raises InputError where the layout cannot share out
    the rows of a global batch.
    """

    def __init__(
        self,
        model: LongRopeModel,
        batches: PackedBatches,
        config: TrainingConfig,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        runtime = model.runtime
        runtime.layout.check_batch(
            config.global_batch_size, config.micro_batch_size, runtime.data_parallel_size
        )
        self.model, self.batches, self.config, self.callbacks = model, batches, config, callbacks
        self.state = TrainState()
        self.chunks, self.optimizer = wrap_for_training(model, config)

    def train(self) -> TrainState:
        """Runs the steps that are left and returns the final state."""
        self.model.set_output("losses")
        self.model.train()
        while self.state.step < self.config.steps:
            report = self.step()
            for callback in self.callbacks:
                callback.after_step(self, report)
        return self.state

    def step(self) -> StepReport:
        """Does one optimizer step over one global batch.

        Raises LongRopeError where the loss is not finite, before any weight is changed.
        """
        started = time.perf_counter()
        number = self.state.step + 1
        self._seed(number)
        rate = self.config.learning_rate_at(number)
        set_rates(self.optimizer, self.config, rate)
        micro_batches = next(self.batches)
        loss, tokens = self._forward_backward(micro_batches)
        if not math.isfinite(loss):
            raise LongRopeError(
                f"the loss of step {number} is {loss}: nothing was updated; the last checkpoint "
                "is whole"
            )
        _, gradient_norm, _ = self.optimizer.step()
        self.state = TrainState(number, self.state.tokens + tokens, self.batches.state_dict())
        return StepReport(
            number, loss, float(gradient_norm or 0.0), rate, tokens, time.perf_counter() - started
        )

    def _forward_backward(self, micro_batches: Sequence[DocumentBatch]) -> tuple[float, int]:
        """Fills the gradients; returns the loss and the tokens of the global batch."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        step = functools.partial(_training_step, self.model)
        return self._global_loss(run_schedule(self.model, step, micro_batches, chunks=self.chunks))

    def _global_loss(self, logs: list[dict[str, Tensor]]) -> tuple[float, int]:
        """Returns nats per token and tokens of the global batch, on every rank.

        Nats and tokens are summed over micro-batches and ranks separately and divided once. A mean
        of means would be wrong: micro-batches differ in the number of tokens.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self.model.runtime.device)
        for log in logs:
            sums += log["sums"]
        groups = self.model.runtime.groups
        # Only the last pipeline stage has logs. Its tensor-parallel ranks all have the same ones.
        dist.all_reduce(sums, group=groups.dp_cp)
        last_stage = dist.get_process_group_ranks(groups.pp)[-1]
        dist.broadcast(sums, src=last_stage, group=groups.pp)
        nats, tokens = sums.tolist()
        return nats / max(tokens, 1.0), int(tokens)

    def _seed(self, step: int) -> None:
        from megatron.core import tensor_parallel

        seed = (self.config.seed * 1_000_003 + step) % (2**31)
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)


def _training_step(
    model: LongRopeModel, batches: Iterator[DocumentBatch], stage: torch.nn.Module
) -> tuple[Tensor, Callable[..., Any]]:
    batch = share_of(model, next(batches))
    output = run_stage(model, stage, batch)
    mask = batch.loss_mask.to(output.device)
    return output, functools.partial(_summed_loss, mask)


def _summed_loss(mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Returns the summed loss, the number of its tokens, and both again for `_global_loss`.

    With these three values megatron-core divides the gradients once, by the tokens of all ranks; a
    local mean would be scaled by the context-parallel size instead (schedule.py).
    """
    nats = (losses * mask).sum()
    tokens = mask.sum()
    return nats, tokens.to(torch.int), {"sums": torch.stack([nats.detach(), tokens]).double()}
