"""The gradient of a loss by the rescale factors λ and the attention factor t, weights unchanged.

For λ: the angles of a batch are the leaf of a backward pass. All layers and heads use one table of
angles φ_{n,i}, so autograd sums their gradients in it (rotary.py), and the chain rule gives

    ∂loss/∂λ_i = Σ_n ∂loss/∂φ_{n,i} · ∂φ_{n,i}/∂λ_i,    ∂φ_{n,i}/∂λ_i = −n·θ_i/λ_i² for n ≥ n̂

and 0 for n < n̂, where φ = n·θ_i does not depend on λ.

For t: the softmax scale is s = t²/√d, and it multiplies every q·k, so s · ∂loss/∂s = Σ q · ∂loss/∂q
(attention/core.py reads it off the query's gradient; nothing changes in the forward pass). With
∂s/∂t = 2s/t this gives ∂loss/∂t = 2/t · (s · ∂loss/∂s).
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
    """Derivatives of a weighted sum of losses, Σ weight · nats."""

    rescale: NDArray[np.float64]
    """Derivative by each λ_i, float64 [num_pairs]."""
    attention_factor: float
    """Derivative by the attention factor t."""


@dataclass
class _Pass:
    """One forward pass, and the leaves whose gradients its backward pass fills."""

    batch: DocumentBatch
    """The whole batch."""
    share: DocumentBatch
    """This context-parallel rank's share of it."""
    weights: Tensor
    """Weight of each prediction of the share, float64 [tokens]; 0 for padding."""
    factors: RopeFactors
    """The factors the batch's longest document selects."""
    packed: LongRopePackedParams
    """Holds the two leaves, `rotary_table` and `scale_gradient`."""


def score_with_gradient(
    model: LongRopeModel,
    documents: Sequence[Tokens],
    weights: Sequence[NDArray[np.float64]],
    *,
    max_batch_tokens: int = 16384,
) -> tuple[list[NDArray[np.floating[Any]]], FactorGradient]:
    """Returns each document's nats [tokens − 1], and the gradient of Σ weight · nats.

    `weights[d]` [tokens − 1] are the weights of document d's predictions. The nats are those that
    `score_documents` returns, but in float64 for a float64 model. The result is the same on every
    rank of the model-parallel group. Model weights get no gradient. Raises InputError as
    `score_documents` does.

    >>> from dataclasses import replace
    >>> exact = replace(model, angle_precision="float64")  # gradients need it
    >>> ones = [np.ones(len(document) - 1) for document in documents]
    >>> nats, gradient = score_with_gradient(exact, documents, ones)
    >>> gradient.rescale.shape == (model.shape.head_dim // 2,)
    True
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
    """Returns a pass over `documents` as one batch, with fresh leaves."""
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
    # Weights stand where their predictions do: the label of position i is token i + 1. Last
    # positions and padding keep weight 0.
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
    """Runs all passes forward and backward; returns each one's nats on every pipeline stage."""
    filled = filled_up(
        model, passes, lambda: _prepare(model, [FILLER], [np.zeros(len(FILLER) - 1)])
    )
    # Training mode, because megatron-core recomputes activations in that mode only.
    with model.running(training=True, output="losses"), _frozen(model):
        logs = run_schedule(model, functools.partial(_step, model), filled)
    return from_last_stage(model, [log["nats"] for log in logs])[: len(passes)]


def _step(
    model: LongRopeModel, passes: Iterator[_Pass], stage: torch.nn.Module
) -> tuple[Tensor, Callable[..., Any]]:
    """Takes the next pass through a chunk; see `schedule.Step` for what is returned."""
    current = next(passes)
    output = forward_stage(model, stage, current.share, current.packed)

    def weighted(losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        total = (losses.double() * current.weights).sum()
        nats = whole_output(model, current.batch, losses.detach(), dim=-1)
        # Three values, as in training: for two, megatron-core would multiply the loss by the
        # context-parallel size and divide it by the number of micro-batches. The token count in the
        # middle is 1, so that nothing is divided.
        return (
            total,
            torch.ones((), dtype=torch.int, device=total.device),
            {"nats": nats.cpu().numpy()},
        )

    return output, weighted


@contextmanager
def _frozen(model: LongRopeModel) -> Iterator[None]:
    """Keeps weights from getting gradients, and skips megatron-core's end of a training step.

    That end (`finalize_model_grads_func`) would reduce and scale the gradients of weights.
    """
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
    """Returns the gradient from all leaves, summed over passes and over the model's ranks.

    Each rank's leaves have the parts of its own heads (tensor parallel), layers (pipeline) and
    tokens (context parallel). These never overlap, so the sum over the three groups is the whole.
    """
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
            # The leaf holds s · ∂loss/∂s; with s = t²/√d, t · ∂/∂t = 2s · ∂/∂s.
            total[-1] += 2 * scale.grad / current.factors.attention_factor
    for group in (model.runtime.groups.tp, model.runtime.groups.pp, model.runtime.groups.cp):
        if group.size() > 1:
            dist.all_reduce(total, group=group)
    values = total.cpu().numpy()
    return FactorGradient(values[:-1].copy(), float(values[-1]))
