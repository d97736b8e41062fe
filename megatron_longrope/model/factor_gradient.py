"""The gradient of a loss with respect to rescale factors and attention temperature, weights
untouched.

The angles of a batch are the leaf of a backward pass: ∂loss/∂λ_i = Σ_n ∂loss/∂angle_{n,i} ·
∂angle_{n,i}/∂λ_i, summed over positions, heads and layers, with the last factor known exactly. The
softmax scale s = t²/√d multiplies every q·k, so s · ∂loss/∂s = Σ q · ∂loss/∂q: read off the query
on its way back, with no change to what is computed forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.data.zigzag import share_index
from megatron_longrope.errors import InputError
from megatron_longrope.model.attention.packed import LongRopePackedParams, packed_params
from megatron_longrope.model.forward import (
    FILLER,
    Tokens,
    check_document,
    forward_stage,
    from_last_stage,
    share_of,
    share_passes,
    split_by_document,
    to_batch,
    whole_output,
)
from megatron_longrope.model.longrope_model import LongRopeModel
from megatron_longrope.model.schedule import filled_up, run_schedule
from megatron_longrope.rope import RopeFactors, angle_derivatives


@dataclass(frozen=True, eq=False)
class FactorGradient:
    """Derivatives of Σ weight · nats: by λ, float64 [num_pairs], and by the attention factor t."""

    rescale: NDArray[np.float64]
    attention_factor: float


@dataclass
class _Pass:
    """One forward pass and the leaves its backward pass fills."""

    batch: DocumentBatch
    share: DocumentBatch
    weights: Tensor
    factors: RopeFactors
    packed: LongRopePackedParams


def score_with_gradient(
    model: LongRopeModel,
    documents: Sequence[Tokens],
    weights: Sequence[NDArray[np.float64]],
    *,
    max_batch_tokens: int = 16384,
) -> tuple[list[NDArray[np.floating[Any]]], FactorGradient]:
    """Returns the nats [tokens − 1] of each document's predictions, and the gradient of Σ weights ·
    nats.

    `weights[d]` [tokens − 1] are those of document d. The nats are `score_documents`' own, in
    float64 for a float64 model; the result is the same on every rank of the model-parallel group.
    Model weights get no gradient. Raises InputError as `score_documents` does.
    """
    if model.angle_precision != "float64":
        raise InputError("angle_precision", model.angle_precision, "gradients need float64 angles")
    for index, document in enumerate(documents):
        check_document(model, document, index)
    passes, start = [], 0
    for group in share_passes(model, documents, max_batch_tokens):
        passes.append(_prepare(model, group, weights[start : start + len(group)]))
        start += len(group)
    outputs = _forward_backward(model, passes)
    nats: list[NDArray[np.floating[Any]]] = []
    for group, output in zip(
        share_passes(model, documents, max_batch_tokens), outputs, strict=True
    ):
        nats += split_by_document(model, group, output)
    return nats, _collect(model, passes)


def _prepare(
    model: LongRopeModel, documents: Sequence[Tokens], weights: Sequence[NDArray[np.float64]]
) -> _Pass:
    batch = to_batch(model, documents)
    group = model.runtime.groups.cp
    share = share_of(model, batch)
    packed = packed_params(
        share, model.factor_set, model.angle_precision, model.runtime.device, model.dtype
    )
    assert packed.rotary_table is not None
    packed.rotary_table.requires_grad_()
    packed.scale_gradient = torch.zeros(
        (), dtype=torch.float64, device=model.runtime.device, requires_grad=True
    )
    placed = torch.zeros(batch.tokens.numel(), dtype=torch.float64)
    for start, weight in zip(batch.cu_seqlens.tolist(), weights, strict=False):
        placed[start : start + len(weight)] = torch.from_numpy(np.asarray(weight, dtype=np.float64))
    if group.size() > 1:
        placed = placed[share_index(batch.cu_seqlens, group.rank(), group.size())]
    return _Pass(
        batch,
        share,
        placed.to(model.runtime.device),
        model.factor_set.for_length(batch.longest),
        packed,
    )


def _forward_backward(
    model: LongRopeModel, passes: Sequence[_Pass]
) -> list[NDArray[np.floating[Any]]]:
    """Runs all passes there and back; returns the last stage's nats of each, on every pipeline
    stage."""
    filled = filled_up(
        model, passes, lambda: _prepare(model, [FILLER], [np.zeros(len(FILLER) - 1)])
    )
    # recomputation is done in training mode only
    with model.running(training=True, output="losses"), _frozen(model):
        logs = run_schedule(model, functools.partial(_step, model), filled)
    return from_last_stage(model, [log["nats"] for log in logs])[: len(passes)]


def _step(
    model: LongRopeModel, passes: Iterator[_Pass], stage: torch.nn.Module
) -> tuple[Tensor, Callable[..., Any]]:
    current = next(passes)
    output = forward_stage(model, stage, current.share, current.packed)

    def weighted(losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        total = (losses.double() * current.weights).sum()
        nats = whole_output(model, current.batch, losses.detach(), dim=-1)
        # one token, so that megatron-core has nothing to divide by
        return (
            total,
            torch.ones((), dtype=torch.int, device=total.device),
            {"nats": nats.cpu().numpy()},
        )

    return output, weighted


@contextmanager
def _frozen(model: LongRopeModel) -> Iterator[None]:
    """No weight gets a gradient, and megatron-core's end of a training step is left out."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config: Any = model.config
    finalize, config.finalize_model_grads_func = config.finalize_model_grads_func, None
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        config.finalize_model_grads_func = finalize
        for parameter in trainable:
            parameter.requires_grad_(True)


def _collect(model: LongRopeModel, passes: Sequence[_Pass]) -> FactorGradient:
    """Adds up what lies in the leaves, over passes and over all ranks that hold a part of the
    model."""
    total = torch.zeros(
        model.shape.head_dim // 2 + 1, dtype=torch.float64, device=model.runtime.device
    )
    for current in passes:
        table, scale, positions = (
            current.packed.rotary_table,
            current.packed.scale_gradient,
            current.packed.positions,
        )
        assert table is not None and scale is not None and positions is not None
        if table.grad is not None:
            by_angle = table.grad.double()
            by_rescale = angle_derivatives(positions.to(by_angle.device), current.factors)
            total[:-1] += (by_angle * by_rescale).sum(dim=0)
        if scale.grad is not None:
            # s = t²/√d, so t · ∂/∂t = 2 s · ∂/∂s
            total[-1] += 2 * scale.grad / current.factors.attention_factor
    for group in (model.runtime.groups.tp, model.runtime.groups.pp, model.runtime.groups.cp):
        if group.size() > 1:
            dist.all_reduce(total, group=group)
    values = total.cpu().numpy()
    return FactorGradient(values[:-1].copy(), float(values[-1]))
