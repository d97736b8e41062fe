"""What a training stage is told."""

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
    """Steps, batch and optimizer of one training stage."""

    steps: PositiveInt
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt = 1
    balanced_steps: PositiveInt = 1
    """Of so many steps the rows are dealt out anew, those alike in cost to one step: ranks wait
    less."""
    learning_rate: PositiveFloat
    final_learning_rate: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 20
    schedule: Schedule = "linear"
    trainable: Trainable = "all"
    """`attention`: all other weights stay as they were pretrained, which disturbs short inputs less
    and is cheaper."""
    weight_decay: NonNegativeFloat = 0.1
    decay_norms: bool = False
    """Decay the weights of norms as well."""
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
        """Returns the rate of step 1 … steps: linear warm-up, then the schedule down to the final
        rate."""
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
