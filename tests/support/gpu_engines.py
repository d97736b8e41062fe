"""One small model for every engine on a CUDA device, with the same weights in each."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints_tools.common.weight_map import rule_of
from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel, ModelShape, build_model
from megatron_longrope.model.engine.settings import BackendSettings
from megatron_longrope.model.forward import run_stage, share_of, to_batch
from megatron_longrope.rope import FactorOrigin, RopeFactors
from megatron_longrope.runtime import Runtime

SHAPE = ModelShape(
    num_layers=4,
    hidden_size=512,
    ffn_hidden_size=1024,
    num_heads=4,
    num_kv_heads=2,
    head_dim=128,
    vocab_size=1000,
    context_length=256,
)
BF16_TOLERANCE = 1e-3
"""Nats per token, in the mean over a thousand tokens, of computing in BF16 to float32. Our own
engine on a CPU is 6e-5 away, and two candidates of the tests are 0.03 apart."""
BF16_GRADIENTS = 0.08
"""Of a gradient's norm; our own engine on a CPU is 0.028 away."""
FP8_TOLERANCE = 2e-2
"""Not measured yet: sixteen times coarser than BF16, and the mean over tokens to even it out."""


def engine_model(
    runtime: Runtime, dtype: torch.dtype = torch.bfloat16, recompute: Any = "none", **settings: Any
) -> LongRopeModel:
    """Returns the model on an engine; skips the test where the engine is not available."""
    try:
        model = build_model(
            SHAPE,
            runtime,
            dtype=dtype,
            recompute=recompute,
            initialize=False,
            backend=BackendSettings(**settings),
        )
    except InputError as refusal:
        pytest.skip(str(refusal))
    fill_weights(model)
    return model


@torch.no_grad()
def fill_weights(model: LongRopeModel) -> None:
    """Draws each weight in float32 with its checkpoint name as seed, the same in every engine.

    Weights have twice the usual size, so that attention is not uniform.
    """
    for name, parameter in model.stage.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        generator = torch.Generator("cpu").manual_seed(
            zlib.crc32(rule_of(name, model.shape).stored.encode())
        )
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.04)


def candidate(scale: float, start_tokens: int, attention_factor: float) -> RopeFactors:
    """Returns factors whose λ rise from 1 to `scale`."""
    return RopeFactors(
        rescale=tuple(np.linspace(1, scale, SHAPE.head_dim // 2).tolist()),
        start_tokens=start_tokens,
        attention_factor=attention_factor,
        original_length=SHAPE.context_length,
        target_length=2048,
        base=SHAPE.rope_base,
        head_dim=SHAPE.head_dim,
        origin=FactorOrigin(method="test"),
    )


def documents(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.integers(0, SHAPE.vocab_size, length) for length in lengths]


def training_pass(model: LongRopeModel, batch: DocumentBatch) -> float:
    """Runs forward and backward over this rank's part of a batch; returns its summed nats."""
    model.stage.train()
    share = share_of(model, batch)
    losses = run_stage(model, model.stage, share)
    total = (losses * share.loss_mask.to(losses.device)).sum()
    total.backward()
    return float(total)


def gradients(model: LongRopeModel) -> dict[str, torch.Tensor]:
    """Returns every weight's gradient in float32, by its name in checkpoints."""
    return {
        rule_of(name, model.shape).stored: parameter.grad.float()
        for name, parameter in model.stage.named_parameters()
        if parameter.grad is not None
    }


def batch_for(model: LongRopeModel, *lengths: int) -> DocumentBatch:
    return to_batch(model, documents(*lengths))
