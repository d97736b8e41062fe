"""Fine-tuning under searched factors, and the control that trains as long at the pretrained
window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.data import PackedBatches, PackedDataset
from megatron_longrope.model import LongRopeModel
from megatron_longrope.model.checkpoints.checkpoint import save_checkpoint
from megatron_longrope.pipeline.recipe import ShortInputs
from megatron_longrope.rope import FactorRange, FactorSet, NoScaling, RopeFactors
from megatron_longrope.training import (
    MetricsFile,
    ReportProgress,
    SaveCheckpoints,
    StopOnSignal,
    Trainer,
    TrainingConfig,
    WeightMerge,
    WriteMetrics,
    resume_training,
    save_training,
)

ShowSteps = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TrainingStage:
    """One training stage of a run: which model, on which rows, where it keeps its state."""

    name: str
    config: TrainingConfig
    data: Path
    directory: RunDirectory
    hf_files: Path | None
    merge: float = 1.0


def training_factors(factors: RopeFactors, short_inputs: ShortInputs) -> FactorSet:
    """Returns what each row is trained under: by the longest piece in it, as inputs are served
    later."""
    if short_inputs == "extended":
        return FactorSet.single(factors)
    unscaled = NoScaling().factors(factors.geometry)
    if short_inputs == "unscaled":
        unscaled = unscaled.model_copy(update={"attention_factor": factors.attention_factor})
    short = FactorRange(up_to=factors.original_length, factors=unscaled)
    return FactorSet(ranges=(short, FactorRange(up_to=None, factors=factors)))


def train_model(
    stage: TrainingStage, model: LongRopeModel, factors: FactorSet | RopeFactors, show: ShowSteps
) -> dict[str, Any]:
    """Trains `model` to the end of its stage, from its last checkpoint where there is one, and
    merges the result with what it began with.

    Leaves `checkpoints/<name>` (weights without optimizer) and returns steps, tokens and the last
    loss.
    """
    model.set_factors(factors)
    runtime = model.runtime
    dataset = PackedDataset(stage.data, vocab_size=model.shape.vocab_size)
    batches = PackedBatches(
        dataset,
        stage.config.global_batch_size,
        runtime.data_parallel_rank,
        runtime.data_parallel_size,
        seed=stage.config.seed,
        micro_batch_size=stage.config.micro_batch_size,
        pad_to_multiple=runtime.layout.sequence_divisor,
        balanced_steps=stage.config.balanced_steps,
    )
    unfinished = stage.directory.training(stage.name)

    def save(trainer: Trainer) -> None:
        save_training(trainer, unfinished, stage.hf_files)

    trainer = Trainer(model, batches, stage.config)
    merge = WeightMerge(model, stage.merge)
    resume_training(trainer, unfinished)
    metrics = (
        MetricsFile(stage.directory.metrics, stage.name, trainer.state.step)
        if runtime.is_main
        else None
    )
    with StopOnSignal(save) as stop:
        trainer.callbacks = [
            WriteMetrics(metrics),
            ReportProgress(show),
            SaveCheckpoints(save),
            stop,
        ]
        state = trainer.train()
    merge.apply()
    save_checkpoint(
        model,
        stage.directory.checkpoint(stage.name),
        iteration=state.step,
        consumed_tokens=state.tokens,
        hf_files=stage.hf_files,
    )
    if runtime.is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
    runtime.barrier()
    return {"steps": state.step, "tokens": state.tokens}
