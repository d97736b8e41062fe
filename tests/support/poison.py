"""A small training whose gradients can be spoilt at chosen steps."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from data_prep.documents import TokenDocument
from data_prep.writing import write_packed
from megatron_longrope.data import PackedBatches, PackedDataset
from megatron_longrope.data.manifest import TokenizerIdentity
from megatron_longrope.runtime import Runtime
from megatron_longrope.training import Trainer, TrainingConfig
from tests.support.tiny_models import VOCABULARY, HfWeights, our_model, random_documents

ROW = 64
Weights = dict[str, torch.Tensor]


def write_rows(prefix: Path) -> None:
    """Writes a packed dataset of rows of ROW tokens."""
    lengths = [40, 24, 64, 10, 54, 30, 34, 64, 20, 44, 64, 33]
    documents = [
        TokenDocument.generated(str(n), d) for n, d in enumerate(random_documents(*lengths))
    ]
    identity = TokenizerIdentity(name="none", sha256="0" * 64)
    write_packed(prefix, documents, ROW, identity, VOCABULARY)


def training_config(**changes: object) -> TrainingConfig:
    """Returns settings of a training of a dozen steps, with `changes`."""
    values = {"steps": 12, "global_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 1}
    return TrainingConfig.model_validate(values | changes)


def poisoned_trainer(
    runtime: Runtime,
    weights: HfWeights,
    dataset: Path,
    steps: Collection[int] = (),
    value: float = float("nan"),
    config: TrainingConfig | None = None,
) -> Trainer:
    """Returns a trainer one of whose gradients holds `value` at the given steps; the loss does
    not."""
    config = config or training_config()
    batches = PackedBatches(
        PackedDataset(dataset),
        config.global_batch_size,
        runtime.data_parallel_rank,
        runtime.data_parallel_size,
        seed=3,
        pad_to_multiple=runtime.layout.sequence_divisor,
    )
    trainer = Trainer(our_model(weights, runtime), batches, config)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        if trainer.state.step + 1 in steps:
            gradient = gradient.clone()
            gradient.view(-1)[0] = value
        return gradient

    name = next(n for n, _ in trainer.model.named_parameters() if "linear_proj" in n)
    dict(trainer.model.named_parameters())[name].register_hook(spoil)
    return trainer


def weights_of(trainer: Trainer) -> Weights:
    """Returns copies of this rank's weights."""
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def moments_of(trainer: Trainer) -> list[torch.Tensor]:
    """Returns copies of Adam's moments and step counters that this rank holds."""
    return [
        value.detach().clone()
        for part in getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer])
        for state in part.optimizer.state.values()
        for value in state.values()
    ]


def is_equal(one: Weights, other: Weights) -> bool:
    """Returns whether two sets of weights are the same to the bit."""
    return all(torch.equal(weight, other[name]) for name, weight in one.items())
