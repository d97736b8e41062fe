"""Learning-rate schedules, metrics that survive a kill, and steps against transformers with torch's
own AdamW."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.documents import TokenDocument
from data_prep.writing import write_packed
from megatron_longrope.artifacts.metrics import MetricsRow
from megatron_longrope.data import PackedBatches, PackedDataset
from megatron_longrope.data.manifest import TokenizerIdentity
from megatron_longrope.errors import InputError, InterruptedRunError, LongRopeError
from megatron_longrope.runtime import Runtime
from megatron_longrope.training import (
    MetricsFile,
    StopOnSignal,
    Trainer,
    TrainingConfig,
    resume_training,
    save_training,
)
from megatron_longrope.training.trainer import StepReport
from tests.support.tiny_models import (
    VOCABULARY,
    our_model,
    random_documents,
    single_runtime,
    tiny_hf_model,
)

ROW = 64
runtime = pytest.fixture(scope="module")(single_runtime)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    prefix = tmp_path_factory.mktemp("data") / "train"
    lengths = [40, 24, 64, 10, 54, 30, 34, 64, 20, 44, 64, 33]
    documents = [
        TokenDocument.generated(str(n), d) for n, d in enumerate(random_documents(*lengths))
    ]
    write_packed(
        prefix, documents, ROW, TokenizerIdentity(name="none", sha256="0" * 64), VOCABULARY
    )
    return PackedDataset(prefix)


def _config(**changes: object) -> TrainingConfig:
    values = {
        "steps": 4,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "schedule": "cosine",
    }
    return TrainingConfig.model_validate(values | changes)


def _trainer(runtime: Runtime, dataset: PackedDataset, config: TrainingConfig) -> Trainer:
    model = our_model(tiny_hf_model(), runtime)
    batches = PackedBatches(
        dataset, config.global_batch_size, seed=3, micro_batch_size=config.micro_batch_size
    )
    return Trainer(model, batches, config)


@settings(deadline=None)
@given(
    steps=st.integers(2, 500),
    warmup=st.integers(0, 100),
    kind=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_rates_rise_then_fall_to_the_final_one(steps: int, warmup: int, kind: str) -> None:
    warmup = min(warmup, steps - 1)
    config = _config(steps=steps, warmup_steps=warmup, schedule=kind, final_learning_rate=1e-3)
    rates = [config.learning_rate_at(step) for step in range(1, steps + 1)]
    assert max(rates) <= 1e-2 * (1 + 1e-12) and all(rate > 0 for rate in rates)
    assert all(a <= b for a, b in zip(rates[:warmup], rates[1:warmup], strict=False))
    after = rates[warmup:]
    assert all(a >= b - 1e-15 for a, b in zip(after, after[1:], strict=False))
    assert math.isclose(rates[-1], 1e-2 if kind == "constant" else 1e-3)


def test_settings_that_contradict_each_other_are_refused() -> None:
    for changes in ({"warmup_steps": 4}, {"final_learning_rate": 1.0}, {"learning_rate": 0}):
        with pytest.raises(ValidationError):
            _config(**changes)


def test_steps_equal_transformers_with_torchs_adamw(
    runtime: Runtime, dataset: PackedDataset
) -> None:
    # with a tiny ε Adam's first steps follow the sign of gradients that are rounding noise
    config = _config(eps=1e-3)
    ours = _trainer(runtime, dataset, config)
    theirs = copy.deepcopy(tiny_hf_model()).train()
    decay = [p for p in theirs.parameters() if p.dim() > 1]
    plain = [p for p in theirs.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=1.0,
        betas=(0.9, 0.95),
        eps=1e-3,
    )
    order = PackedBatches(dataset, config.global_batch_size, seed=3)
    for step in range(1, 5):
        pieces = [piece for row in order.step_rows(step - 1) for piece in dataset.row(row)]
        nats, tokens = torch.zeros(()), 0
        for piece in pieces:
            inputs = torch.from_numpy(np.asarray(piece, dtype=np.int64))
            logits = theirs(inputs[None]).logits[0, :-1]
            nats = nats + torch.nn.functional.cross_entropy(logits, inputs[1:], reduction="sum")
            tokens += len(piece) - 1
        (nats / tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        report = ours.step()
        assert report.tokens == tokens
        assert math.isclose(report.loss, float(nats / tokens), rel_tol=2e-5)
        assert math.isclose(report.gradient_norm, float(norm), rel_tol=2e-3)


def test_attention_alone_is_trained_where_that_is_asked_for(
    runtime: Runtime, dataset: PackedDataset
) -> None:
    trainer = _trainer(runtime, dataset, _config(trainable="attention"))
    stage = trainer.model.stage
    before = {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}
    trainer.step()
    changed = {
        name
        for name, parameter in stage.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    projections = ("linear_qkv.weight", "linear_proj.weight")
    assert changed == {name for name in before if name.endswith(projections)}


def test_a_resumed_training_repeats_the_undisturbed_one_bit_for_bit(
    runtime: Runtime, dataset: PackedDataset, tmp_path: Path
) -> None:
    whole = _trainer(runtime, dataset, _config())
    losses = []
    for step in range(4):
        losses.append(whole.step().loss)
        if step == 1:
            save_training(whole, tmp_path / "checkpoint")
    resumed = _trainer(runtime, dataset, _config())
    assert resume_training(resumed, tmp_path / "checkpoint")
    assert [resumed.step().loss for _ in range(2)] == losses[2:]
    for mine, other in zip(
        whole.model.stage.parameters(), resumed.model.stage.parameters(), strict=True
    ):
        assert torch.equal(mine, other)


def test_other_settings_do_not_resume(
    runtime: Runtime, dataset: PackedDataset, tmp_path: Path
) -> None:
    trainer = _trainer(runtime, dataset, _config())
    assert not resume_training(trainer, tmp_path / "nothing")
    trainer.step()
    save_training(trainer, tmp_path / "checkpoint")
    with pytest.raises(InputError, match=r"training\.learning_rate"):
        resume_training(
            _trainer(runtime, dataset, _config(learning_rate=2e-2)), tmp_path / "checkpoint"
        )


def test_a_loss_that_is_no_number_updates_nothing(runtime: Runtime, dataset: PackedDataset) -> None:
    trainer = _trainer(runtime, dataset, _config())
    weight = next(trainer.model.stage.parameters())
    with torch.no_grad():
        weight[:] = float("nan")
    others = [p.clone() for p in list(trainer.model.stage.parameters())[1:]]
    with pytest.raises(LongRopeError, match="step 1 is nan"):
        trainer.step()
    assert all(
        torch.equal(a, b)
        for a, b in zip(others, list(trainer.model.stage.parameters())[1:], strict=True)
    )


class _AskAfter:
    """Sends this process a signal after a step, as Slurm does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_stops_training_after_its_step_and_is_itself_again_afterwards(
    runtime: Runtime, dataset: PackedDataset
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        trainer, saved = _trainer(runtime, dataset, _config()), []
        with (
            pytest.raises(InterruptedRunError, match="after step 2"),
            StopOnSignal(lambda t: saved.append(t.state.step)) as stop,
        ):
            trainer.callbacks = [_AskAfter(2), stop]
            trainer.train()
        assert saved == [2] and not heard
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]  # the stages after training hear it too
        with StopOnSignal(lambda t: None):
            os.kill(os.getpid(), signal.SIGTERM)  # no step is left to stop after
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_metrics_take_back_steps_that_are_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for stage in ("one", "two"):
        metrics = MetricsFile(path, stage)
        for step in (1, 2, 3):
            metrics.write(MetricsRow(stage=stage, step=step, loss=1.0 / step))
    with path.open("a") as stream:
        stream.write('{"stage": "two", "st')  # torn by a kill
    resumed = MetricsFile(path, "two", resume_step=1)
    resumed.write(MetricsRow(stage="two", step=2, loss=9.0))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("one", 1),
        ("one", 2),
        ("one", 3),
        ("two", 1),
        ("two", 2),
    ]
    assert lines[-1]["loss"] == 9.0
