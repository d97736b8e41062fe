"""The settings of a training stage."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from megatron_longrope.config import StrictConfig

Trainable = Literal["all", "attention"]
Schedule = Literal["cosine", "linear", "constant"]


class TrainingConfig(StrictConfig):
    """Steps, batch and optimizer of one training stage.

    >>> config = TrainingConfig(steps=100, global_batch_size=8, learning_rate=1e-4)
    >>> [round(config.learning_rate_at(step) * 1e4, 3) for step in (1, 20, 60, 100)]
    [0.05, 1.0, 0.5, 0.0]
    """

    steps: PositiveInt
    global_batch_size: PositiveInt
    """Rows of one optimizer step over all ranks."""
    micro_batch_size: PositiveInt = 1
    """Rows of one forward and backward pass on one data-parallel rank."""
    balanced_steps: PositiveInt = 1
    """Number of steps among which rows are exchanged so that those of similar cost share a step.

    Data-parallel ranks then wait less for each other.
    """
    learning_rate: PositiveFloat
    """Highest learning rate, reached after the warm-up."""
    final_learning_rate: NonNegativeFloat = 0.0
    """Learning rate of the last step, except with the constant schedule."""
    warmup_steps: NonNegativeInt = 20
    schedule: Schedule = "linear"
    trainable: Trainable = "all"
    """Weights that are trained.

    `attention`: all others stay as they were pretrained. This costs less, and disturbs the model
    less on short inputs.
    """
    weight_decay: NonNegativeFloat = 0.1
    decay_norms: bool = False
    """Whether the weights of norms decay as well."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    clip_grad: NonNegativeFloat = 1.0
    seed: NonNegativeInt = 1234
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 100

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be below steps={self.steps}")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate={self.final_learning_rate} must not exceed "
                f"learning_rate={self.learning_rate}"
            )
        return self

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 1 to `steps`.

        It rises linearly during the warm-up, then follows the schedule down to the final rate.
        """
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        remaining = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "constant": 1.0,
        }
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * remaining[self.schedule]
