"""Steps that would spoil weights or train nothing: left out and counted, or stopped with a line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from megatron_longrope.artifacts.metrics import read_metrics
from megatron_longrope.errors import LongRopeError
from megatron_longrope.runtime import Runtime
from megatron_longrope.training import (
    MetricsFile,
    ReportProgress,
    WriteMetrics,
    resume_training,
    save_training,
)
from megatron_longrope.training.trainer import MOST_SKIPPED_IN_A_ROW, TrainState
from tests.support.poison import (
    is_equal,
    moments_of,
    poisoned_trainer,
    training_config,
    weights_of,
    write_rows,
)
from tests.support.tiny_models import HfWeights, single_runtime, tiny_hf_model

runtime = pytest.fixture(scope="module")(single_runtime)


@pytest.fixture(scope="module")
def weights() -> HfWeights:
    return HfWeights.of(tiny_hf_model())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("data") / "train"
    write_rows(prefix)
    return prefix


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_gradient_that_is_no_number_changes_nothing_but_its_count(
    value: float, runtime: Runtime, weights: HfWeights, dataset: Path
) -> None:
    trainer = poisoned_trainer(runtime, weights, dataset, {2}, value)
    assert trainer.step().skipped == 0
    before, moments = weights_of(trainer), moments_of(trainer)
    report = trainer.step()
    assert math.isfinite(report.loss) and not math.isfinite(report.gradient_norm)
    assert (report.step, report.skipped, trainer.state.step) == (2, 1, 2)
    assert is_equal(weights_of(trainer), before)
    assert len(moments) > 0
    for mine, other in zip(moments_of(trainer), moments, strict=True):
        assert torch.equal(mine, other)
    report = trainer.step()
    assert math.isfinite(report.gradient_norm) and report.skipped == 1
    assert trainer.state.skipped_in_a_row == 0
    assert not is_equal(weights_of(trainer), before)
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())


def test_steps_that_are_not_skipped_are_as_megatron_cores_own(
    runtime: Runtime, weights: HfWeights, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (poisoned_trainer(runtime, weights, dataset) for _ in range(2))
    norms = [ours.step().gradient_norm for _ in range(3)]
    assert norms[0] > ours.config.clip_grad  # so that clipping is compared too
    monkeypatch.setattr(
        "megatron_longrope.training.trainer.update_weights",
        lambda optimizer: float(optimizer.step()[1]),
    )
    assert [theirs.step().gradient_norm for _ in range(3)] == norms
    assert is_equal(weights_of(ours), weights_of(theirs))


def test_several_skipped_steps_in_a_row_stop_the_training(
    runtime: Runtime, weights: HfWeights, dataset: Path, tmp_path: Path
) -> None:
    last = 1 + MOST_SKIPPED_IN_A_ROW
    shown: list[str] = []
    trainer = poisoned_trainer(
        runtime, weights, dataset, range(2, last + 1), config=training_config(log_every=1)
    )
    trainer.callbacks = [
        WriteMetrics(MetricsFile(tmp_path / "metrics.jsonl", "train")),
        ReportProgress(lambda done, total, message: shown.append(message)),
    ]
    with pytest.raises(LongRopeError, match=f"steps up to step {last} are not finite") as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and "learning_rate" in str(caught.value)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row.skipped for row in rows] == [None, *range(1, MOST_SKIPPED_IN_A_ROW)]
    assert "skipped" not in (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert "without update" not in shown[0] and "2 without update" in shown[2]


def test_the_count_survives_a_kill_and_the_resumed_steps_are_the_same(
    runtime: Runtime, weights: HfWeights, dataset: Path, tmp_path: Path
) -> None:
    steps = {2, 3, 5}
    whole = poisoned_trainer(runtime, weights, dataset, steps)
    losses = []
    for step in range(1, 7):
        losses.append(whole.step().loss)
        if step == 3:
            save_training(whole, tmp_path / "checkpoint")
    resumed = poisoned_trainer(runtime, weights, dataset, steps)
    assert resume_training(resumed, tmp_path / "checkpoint")
    assert (resumed.state.skipped, resumed.state.skipped_in_a_row) == (2, 2)
    assert [resumed.step().loss for _ in range(3)] == losses[3:]
    assert resumed.state == whole.state and whole.state.skipped == 3
    assert is_equal(weights_of(resumed), weights_of(whole))


def test_a_state_of_before_steps_were_counted_is_read() -> None:
    state = TrainState()
    state.load_state_dict({"step": 3, "tokens": 5, "batches": {}})
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 0, 0)


def test_a_loss_that_no_trained_weight_takes_part_in_stops(
    runtime: Runtime, weights: HfWeights, dataset: Path
) -> None:
    trainer = poisoned_trainer(runtime, weights, dataset)
    for parameter in trainer.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(LongRopeError, match="depends on no weight that is trained") as caught:
        trainer.step()
    assert "\n" not in str(caught.value)


def test_a_gradient_of_exactly_nothing_stops(
    runtime: Runtime, weights: HfWeights, dataset: Path
) -> None:
    trainer = poisoned_trainer(
        runtime, weights, dataset, config=training_config(trainable="attention")
    )
    with torch.no_grad():  # the output layer sees nothing: every loss is ln(vocabulary)
        for name, parameter in trainer.model.named_parameters():
            if name == "decoder.final_layernorm.weight":
                parameter.zero_()
    before = weights_of(trainer)
    with pytest.raises(LongRopeError, match=r"step 1 is exactly 0.*attention") as caught:
        trainer.step()
    assert "\n" not in str(caught.value)
    assert is_equal(weights_of(trainer), before) and trainer.state.step == 0
