"""The stage that trains: under searched factors, or a control at the pretrained window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.load_any import model_factors
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.config import format_length
from megatron_longrope.data import PackedBatches, PackedDataset
from megatron_longrope.evaluation import with_attention_factor
from megatron_longrope.model import LongRopeModel, ModelShape
from megatron_longrope.model.checkpoints.checkpoint import save_checkpoint
from megatron_longrope.model.engine.settings import Recompute
from megatron_longrope.model.flops import PassFlops
from megatron_longrope.pipeline.evaluating import extended_factor_set
from megatron_longrope.pipeline.recipe import FineTuneConfig, ShortInputs
from megatron_longrope.pipeline.run import Run, RunInputs, angle_inputs, backend_inputs
from megatron_longrope.pipeline.stages.markers import json_sha256
from megatron_longrope.pipeline.stages.searching import Found
from megatron_longrope.pipeline.stages.stage import (
    PLACES,
    Cost,
    Stage,
    checkpoint_path,
    factors_path,
)
from megatron_longrope.rope import (
    FactorRange,
    FactorSet,
    OwnScaling,
    RopeFactors,
    factors_to_json,
)
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
"""Is called with steps done, steps in all, and a message."""


@dataclass(frozen=True)
class TrainingStage:
    """One training: its settings, its rows, and where it keeps its state."""

    name: str
    config: TrainingConfig
    data: Path
    """The dataset of packed rows, without suffix."""
    directory: RunDirectory
    hf_files: Path | None
    """The folder of config and tokenizer that checkpoints take along; None where there is none."""
    merge: float = 1.0
    """How far the weights go from those before training to those after it; 1: all the way."""


@dataclass(frozen=True)
class TrainWeights(Stage):
    """Trains a checkpoint on the rows of one dataset, all or some of its weights."""

    kind = "train"
    added_inputs = ("trained_from", "packed_from")
    config: FineTuneConfig
    start: str
    """Name of the checkpoint that training starts from."""
    factors: Found | None
    """The searched factors to train under; None, for a control: those of the start."""
    pieces: str
    """Name of the stage that packed the rows."""
    shape: ModelShape
    own: OwnScaling
    """The scaling that the model of the run arrived with."""
    recompute: Recompute
    """Which activations the backward pass computes again, for the cost."""

    @property
    def does(self) -> str:
        """What the stage does, with factors, steps, batch and length."""
        training, length = self.config.training, format_length(self.config.data.sequence_length)
        under = (
            f"under the factors for {format_length(self.factors.length)}"
            if self.factors
            else ("without new factors, to compare with")
        )
        batch = f"{training.steps} steps of {training.global_batch_size} × {length}"
        return f"train {training.trainable} weights {under}: {batch}"

    @property
    def checkpoint(self) -> str:
        """The checkpoint that training starts from."""
        return self.start

    @property
    def inputs(self) -> tuple[str, ...]:
        """The checkpoint, the rows and the searched factors."""
        factors = (factors_path(self.factors.search),) if self.factors else ()
        return (checkpoint_path(self.start), str(PLACES.data(self.name)), *factors)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The trained checkpoint, and the metrics of each step."""
        return (checkpoint_path(self.name), str(PLACES.metrics))

    @property
    def cost(self) -> Cost:
        """The most that training can cost, with backward passes for the weights that are trained.

        Attention is counted over whole rows, though it does not reach from one piece to another.
        """
        training, length = self.config.training, self.config.data.sequence_length
        tokens = training.steps * training.global_batch_size * length
        row = PassFlops(self.shape, length).with_backward(training.trainable, self.recompute)
        flops = training.steps * training.global_batch_size * row
        return Cost(tokens=tokens, backward_tokens=tokens, flops=flops)

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns the settings, rows, start, factors and precision of the training."""
        recipe = run.recipe
        return {
            "training": self.config.training.model_dump(mode="json"),
            "start": self.start,
            **run.trained_from(self.start),
            "data": run.marker(self.pieces).result,
            # counts alone are the same for other rows of as many tokens
            "packed_from": json_sha256(run.marker(self.pieces).inputs),
            "dtype": recipe.dtype,
            "factors": factors_to_json(self._factors(run)),
            "merge": self.config.merge,
            **angle_inputs(recipe.angle_precision),
            **backend_inputs(recipe.backend),
        }

    def work(self, run: Run) -> dict[str, object]:
        """Trains to the end; returns the numbers of steps and tokens."""
        model = run.load(self.start, "training")
        training = TrainingStage(
            self.name,
            self.config.training,
            run.directory.data(self.name),
            run.directory,
            run.hf_files,
            self.config.merge,
        )
        return train_model(training, model, self._factors(run), run.progress.training(self.name))

    def _factors(self, run: RunInputs) -> FactorSet:
        if self.factors is None:
            return model_factors(run.directory.checkpoint(self.start))
        return training_factors(self.factors.factors(run), self.config.short_inputs, self.own)


def training_factors(factors: RopeFactors, short_inputs: ShortInputs, own: OwnScaling) -> FactorSet:
    """Returns the factors by input length that rows are trained under.

    The longest piece of a row decides, just as the length of an input decides later.
    """
    return extended_factor_set([factors], [], short_ranges(factors, short_inputs, own))


def short_ranges(
    factors: RopeFactors, short_inputs: ShortInputs, own: OwnScaling
) -> tuple[FactorRange, ...]:
    """Returns the ranges of short inputs that have other factors than the trained `factors`.

    For inputs within the window that the model arrived with, `short_inputs` says which factors they
    have: it may leave them under the model's `own`.
    """
    if short_inputs == "extended":
        return own.short_ranges
    short = own.up_to_window(factors).ranges[:-1]
    if short_inputs == "unscaled":
        return with_attention_factor(FactorSet(ranges=short), factors.attention_factor).ranges
    return short


def train_model(
    stage: TrainingStage, model: LongRopeModel, factors: FactorSet | RopeFactors, show: ShowSteps
) -> dict[str, object]:
    """Trains `model` to the end, and returns the numbers of steps and tokens.

    An interrupted training goes on from its last checkpoint. At the end the weights are merged with
    those before training, if the stage says so, and saved without optimizer state in
    `checkpoints/NAME`. Where updates were skipped, their number is returned too. All ranks come
    here together.
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
    # before resuming: the merge remembers the weights that training starts from
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
    skipped = {"skipped": state.skipped} if state.skipped else {}
    return {"steps": state.step, "tokens": state.tokens, **skipped}
