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
from megatron_longrope.training.optimizer import set_rates, update_weights, wrap_for_training

MOST_SKIPPED_IN_A_ROW = 5
"""Updates left out one after another, because a gradient was not finite, at which training
stops."""


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
    skipped: int = 0
    """Number of steps so far whose update was left out because a gradient was not finite."""


@dataclass
class TrainState:
    """What a training needs to continue, beside weights and optimizer."""

    step: int = 0
    """Number of steps done."""
    tokens: int = 0
    """Number of predicted tokens so far."""
    batches: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The state of the `PackedBatches`."""
    skipped: int = 0
    """Steps whose update was left out because a gradient was not finite."""
    skipped_in_a_row: int = 0
    """Number of such steps since the last one that updated the weights."""

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
        # states saved before skipped steps were counted have none
        self.skipped = int(state.get("skipped", 0))
        self.skipped_in_a_row = int(state.get("skipped_in_a_row", 0))


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

        Where the loss is finite and a gradient is not, the update is left out and counted. Raises
        LongRopeError where the loss is not finite, where no gradient reaches a weight, and where
        `MOST_SKIPPED_IN_A_ROW` updates in a row were left out.
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
        norm = update_weights(self.optimizer)
        if norm == 0:
            raise LongRopeError(_no_gradient(number, tokens, self.config.trainable))
        is_skipped = not math.isfinite(norm)
        in_a_row = self.state.skipped_in_a_row + 1 if is_skipped else 0
        if in_a_row == MOST_SKIPPED_IN_A_ROW:
            raise LongRopeError(_no_finite_gradient(number, norm))
        skipped = self.state.skipped + is_skipped
        self.state = TrainState(
            number,
            self.state.tokens + tokens,
            self.batches.state_dict(),
            skipped,
            in_a_row,
        )
        seconds = time.perf_counter() - started
        return StepReport(number, loss, norm, rate, tokens, seconds, skipped)

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
    if not output.requires_grad:
        # megatron-core's schedules would leave out the backward pass in silence
        raise LongRopeError(
            "the loss depends on no weight that is trained: set `trainable` to weights of the "
            "layers, and freeze none of them by hand"
        )
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


def _no_gradient(step: int, tokens: int, trainable: str) -> str:
    if tokens == 0:
        return (
            f"step {step} has no token to predict: its rows hold documents of a single token; "
            "pack longer ones"
        )
    return (
        f"the gradient of step {step} is exactly 0: the weights trained (trainable: {trainable}) "
        "do not move the loss; train others, or check that the model's weights are loaded"
    )


def _no_finite_gradient(step: int, norm: float) -> str:
    return (
        f"the gradients of {MOST_SKIPPED_IN_A_ROW} steps up to step {step} are not finite (norm "
        f"{norm}), their updates were left out: lower learning_rate, or train in float32; the last "
        "checkpoint is whole"
    )
