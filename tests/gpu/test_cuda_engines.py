"""On a CUDA device: every engine gives the same losses and gradients, and no candidate leaves a
trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_longrope.model import LongRopeModel, score_documents
from megatron_longrope.model.checkpoints.checkpoint import load_weights, save_checkpoint
from megatron_longrope.runtime import Runtime, start_runtime
from tests.support.gpu_engines import (
    BF16_GRADIENTS,
    BF16_TOLERANCE,
    FP8_TOLERANCE,
    batch_for,
    candidate,
    documents,
    engine_model,
    gradients,
    training_pass,
)

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
PACKED = (700, 129, 1, 500)
ALONE = (1330,)
TE: dict[str, Any] = {"engine": "transformer-engine"}
BF16: list[dict[str, Any]] = [
    {"engine": "torch"},
    {"engine": "flash-attn"},
    TE,
    {**TE, "fused_rope": True},
]
FP8: list[dict[str, Any]] = [
    {**TE, "fp8": recipe, "fp8_scoring": True} for recipe in ("tensorwise", "blockwise", "mxfp8")
]
FP8_ATTENTION: dict[str, Any] = {**TE, "fp8": "delayed", "fp8_attention": True, "packed": False}


def named(settings: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with start_runtime() as runtime:
        assert runtime.device.type == "cuda"
        yield runtime


def nats(model: LongRopeModel, lengths: tuple[int, ...], factors: Any = None) -> np.ndarray:
    model.set_factors(factors or candidate(6.0, 4, 1.15))
    texts = documents(*(length for length in lengths if length > 1))
    return np.concatenate([score.nll for score in score_documents(model, texts)])


@pytest.mark.parametrize("lengths", [PACKED, ALONE], ids=["packed", "alone"])
@pytest.mark.parametrize("settings", BF16 + FP8, ids=named)
def test_losses_are_those_of_float32(
    settings: dict[str, Any], lengths: tuple[int, ...], runtime: Runtime
) -> None:
    found = nats(engine_model(runtime, **settings), lengths)
    expected = nats(engine_model(runtime, torch.float32, engine="torch"), lengths)
    tolerance = FP8_TOLERANCE if "fp8" in settings else BF16_TOLERANCE
    assert abs(found.mean() - expected.mean()) < tolerance
    # the same text predicted, not the same average by chance
    assert np.corrcoef(found, expected)[0, 1] > (0.95 if "fp8" in settings else 0.999)


@pytest.mark.parametrize("lengths", [PACKED, ALONE], ids=["packed", "alone"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("settings", BF16, ids=named)
def test_gradients_are_those_of_float32(
    settings: dict[str, Any], recompute: str, lengths: tuple[int, ...], runtime: Runtime
) -> None:
    exact = engine_model(runtime, torch.float32, engine="torch")
    model = engine_model(runtime, recompute=recompute, **settings)
    for each in (exact, model):
        each.set_factors(candidate(6.0, 4, 1.15))
    expected_loss = training_pass(exact, batch_for(exact, *lengths))
    assert training_pass(model, batch_for(model, *lengths)) == pytest.approx(
        expected_loss, rel=1e-3
    )
    expected, found = gradients(exact), gradients(model)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < BF16_GRADIENTS * gradient.norm(), name


@pytest.mark.parametrize("settings", [*BF16, *FP8], ids=named)
def test_a_candidate_scores_the_same_bits_after_another_one(
    settings: dict[str, Any], runtime: Runtime
) -> None:
    model = engine_model(runtime, **settings)
    first, other = candidate(3.0, 0, 1.0), candidate(8.0, 16, 1.3)
    for lengths in (PACKED, ALONE):
        before, between, after = (
            nats(model, lengths, factors) for factors in (first, other, first)
        )
        assert np.array_equal(before, after)
        assert abs(before.mean() - between.mean()) > 1e-4


@pytest.mark.parametrize("settings", BF16, ids=named)
def test_documents_of_a_pack_do_not_see_each_other(
    settings: dict[str, Any], runtime: Runtime
) -> None:
    model = engine_model(runtime, **settings)
    texts = documents(700, 129, 500)
    together = score_documents(model, texts)
    alone = [score_documents(model, [text])[0] for text in texts]
    for a, b in zip(together, alone, strict=True):
        assert abs(a.nll.mean() - b.nll.mean()) < BF16_TOLERANCE


@pytest.mark.parametrize("backward", [True, False], ids=["fp8 backward", "bf16 backward"])
def test_training_in_fp8_attention(backward: bool, runtime: Runtime) -> None:
    """Delayed scaling finds its scales in the first passes; then loss and gradients are near those
    of BF16."""
    bf16 = engine_model(runtime, engine="transformer-engine", packed=False)
    model = engine_model(
        runtime, recompute="full", **FP8_ATTENTION, fp8_attention_backward=backward
    )
    batch = batch_for(model, 1328)
    expected = training_pass(bf16, batch)
    for _ in range(4):
        model.stage.zero_grad(set_to_none=True)
        model.stage.set_is_first_microbatch()
        loss = training_pass(model, batch)
    assert abs(loss - expected) / 1327 < FP8_TOLERANCE
    found = gradients(model)
    for name, gradient in gradients(bf16).items():
        assert torch.isfinite(found[name]).all()
        assert (
            torch.nn.functional.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0)
            > 0.9
        ), name


@pytest.mark.parametrize("settings", BF16, ids=named)
def test_memory_of_attention_is_linear(settings: dict[str, Any], runtime: Runtime) -> None:
    """Four times the tokens take at most about four times the memory: no kernel keeps a matrix of
    length × length."""
    model = engine_model(runtime, **settings)
    score_documents(model, documents(256))  # what is allocated once

    def peak(length: int) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        score_documents(model, documents(length))
        return torch.cuda.max_memory_allocated() - before

    assert peak(65536) < 4.4 * peak(16384)


def test_checkpoints_travel_between_engines(tmp_path: Path, runtime: Runtime) -> None:
    te = engine_model(runtime, **TE)
    save_checkpoint(te, tmp_path / "te")
    torch_engine = engine_model(runtime, engine="torch")
    with torch.no_grad():
        for parameter in torch_engine.stage.parameters():
            parameter.zero_()
    load_weights(torch_engine, tmp_path / "te")
    assert abs(nats(te, PACKED).mean() - nats(torch_engine, PACKED).mean()) < BF16_TOLERANCE
