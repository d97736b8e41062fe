"""Saving and resuming a training stage: weights, optimizer and trainer's state in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_longrope.errors import InputError
from megatron_longrope.model.checkpoints.checkpoint import (
    is_checkpoint,
    load_checkpoint,
    save_checkpoint,
    sharded_weights,
)
from megatron_longrope.training.optimizer import SHARDING, load_optimizer
from megatron_longrope.training.trainer import Trainer

_EARLIER_NAMES = {
    "rows_per_step": "global_batch_size",
    "micro_batch_rows": "micro_batch_size",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "clip_gradient": "clip_grad",
}
"""Names of settings in checkpoints written before they were renamed, and their names now."""


def save_training(trainer: Trainer, directory: Path, hf_files: Path | None = None) -> None:
    """Writes a checkpoint from which `resume_training` continues exactly, under any layout.

    Every rank calls it. `hf_files` is a folder whose config and tokenizer files are carried along.
    """
    save_checkpoint(
        trainer.model,
        directory,
        iteration=trainer.state.step,
        consumed_tokens=trainer.state.tokens,
        training={
            "state": trainer.state.state_dict(),
            "config": trainer.config.model_dump(mode="json"),
        },
        extra_sharded={"optimizer": _optimizer_state(trainer, is_loading=False)},
        hf_files=hf_files,
    )


def resume_training(trainer: Trainer, directory: Path) -> bool:
    """Continues from the checkpoint in `directory`; returns False where there is none.

    Raises InputError where it was trained with other settings: the result would be neither run's.
    """
    if not is_checkpoint(directory):
        return False
    description, extra = load_checkpoint(
        trainer.model, directory, {"optimizer": _optimizer_state(trainer, is_loading=True)}
    )
    stored = {
        _EARLIER_NAMES.get(k, k): v for k, v in description.training.get("config", {}).items()
    }
    mine = trainer.config.model_dump(mode="json")
    for name, value in mine.items():
        if stored.get(name) != value and name not in ("log_every", "checkpoint_every"):
            raise InputError(
                f"training.{name}",
                value,
                f"the checkpoint {directory} was trained with {stored.get(name)}",
            )
    load_optimizer(trainer.optimizer, extra["optimizer"])
    trainer.state.load_state_dict(description.training["state"])
    trainer.batches.load_state_dict(trainer.state.batches)
    return True


def _optimizer_state(trainer: Trainer, is_loading: bool) -> dict[str, Any]:
    state: dict[str, Any] = trainer.optimizer.sharded_state_dict(
        sharded_weights(trainer.model), is_loading=is_loading, metadata=SHARDING
    )
    return state
