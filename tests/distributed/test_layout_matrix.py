"""Every layout of up to four processes gives one process's loss and gradients, and
transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_longrope.data import DocumentBatch
from megatron_longrope.model import LongRopeModel
from megatron_longrope.model.forward import run_stage, share_of
from megatron_longrope.model.schedule import run_schedule
from megatron_longrope.runtime import ParallelLayout
from megatron_longrope.runtime.runtime import divide_processes
from megatron_longrope.training.config import Trainable
from megatron_longrope.training.optimizer import is_attention
from tests.support.one_world import joined_processes
from tests.support.spawn import run_distributed
from tests.support.tiny_models import (
    HfWeights,
    our_model,
    random_documents,
    stage_tensors,
    tiny_hf_model,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

LOSS_BAR, GRADIENT_BAR = 1e-6, 1e-5
Gradients = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A layout with its settings; the processes it leaves over are data-parallel."""

    layout: ParallelLayout
    packed: bool = True
    recompute: str = "none"

    def __str__(self) -> str:
        sizes = {
            "TP": self.layout.tensor_parallel,
            "PP": self.layout.pipeline_parallel,
            "CP": self.layout.context_parallel,
        }
        words = [f"{name}{size}" for name, size in sizes.items() if size > 1] or ["DP"]
        words += [f"VPP{self.layout.virtual_pipeline}"] if self.layout.is_interleaved else []
        words += ["SP"] if self.layout.sequence_parallel else []
        words += [self.layout.context_exchange] if self.layout.context_exchange != "auto" else []
        words += [] if self.packed else ["unpacked"]
        return "-".join(words + ([self.recompute] if self.recompute != "none" else []))


def case(
    tp: int = 1,
    pp: int = 1,
    cp: int = 1,
    sp: bool = False,
    exchange: str = "auto",
    vpp: int = 1,
    **settings: Any,
) -> Case:
    layout = ParallelLayout(
        tensor_parallel=tp,
        pipeline_parallel=pp,
        context_parallel=cp,
        sequence_parallel=sp,
        context_exchange=exchange,
        virtual_pipeline=vpp,
    )
    return Case(layout, **settings)


TWO = [
    case(),
    case(tp=2),
    case(tp=2, sp=True),
    case(pp=2),
    case(cp=2),
    case(cp=2, packed=False),
    case(pp=2, vpp=2),
]
FOUR = [
    case(cp=4, exchange="ring"),
    case(cp=4, exchange="all_gather"),
    case(cp=4, packed=False, recompute="full"),
    case(cp=2, exchange="ring"),
    case(cp=2, exchange="all_gather", recompute="selective"),
    case(tp=2, cp=2),
    case(tp=2, cp=2, sp=True),
    case(tp=2, cp=2, sp=True, recompute="full"),
    case(pp=2, cp=2),
    case(pp=2, cp=2, recompute="full", packed=False),
    case(tp=2, pp=2),
    case(tp=2, pp=2, sp=True),
    case(tp=2, pp=2, sp=True, recompute="selective"),
    case(tp=2),
    case(pp=2, recompute="selective"),
    case(recompute="full"),
    case(pp=2, vpp=2),
    case(pp=2, vpp=2, cp=2),
    case(pp=2, vpp=2, cp=2, recompute="full", packed=False),
    case(pp=2, vpp=2, tp=2),
    case(pp=2, vpp=2, tp=2, sp=True, recompute="selective"),
]


def documents(packed: bool) -> list[list[np.ndarray]]:
    """Four micro-batches: rows of several documents (one token, a chunk's edge, fewer tokens than
    ranks), or of one."""
    lengths = (
        [[64, 37, 130], [2, 9, 1, 16, 16], [5], [96, 3]] if packed else [[200], [64], [131], [16]]
    )
    return [random_documents(*row, seed=index) for index, row in enumerate(lengths)]


class Step(NamedTuple):
    """Mean loss over all predictions of the four micro-batches, and its gradients (of this
    process's share)."""

    loss: float
    gradients: Gradients


def train_step(model: LongRopeModel, packed: bool, trainable: Trainable = "all") -> Step:
    """One forward and backward pass by megatron-core's schedule and gradient finalization, as
    training does it. Gradients are those of the `trainable` weights."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    groups = model.runtime.groups
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable == "all" or is_attention(name))
    chunks = [
        DistributedDataParallel(
            model.config, DistributedDataParallelConfig(), chunk, pg_collection=groups
        )
        for chunk in model.chunks
    ]
    model.config.finalize_model_grads_func = finalize_model_grads
    sums = torch.zeros(2, dtype=torch.float64)

    def step(batches: Any, module: Any) -> Any:
        batch = share_of(model, next(batches))

        def loss(losses: torch.Tensor) -> Any:
            nats, tokens = (losses * batch.loss_mask).sum(), batch.loss_mask.sum()
            sums.add_(torch.stack([(losses.detach().double() * batch.loss_mask).sum(), tokens]))
            return nats, tokens.int(), {}

        return run_stage(model, module, batch), loss

    mine = documents(packed)[model.runtime.data_parallel_rank :: model.runtime.data_parallel_size]
    pad = model.runtime.layout.sequence_divisor
    batches = [DocumentBatch.from_documents(part, pad) for part in mine]
    run_schedule(model, step, batches, chunks=chunks)
    dist.all_reduce(sums, group=groups.dp_cp)
    dist.broadcast(sums, src=dist.get_process_group_ranks(groups.pp)[-1], group=groups.pp)
    gradients = {
        name: parameter.main_grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return Step(float(sums[0] / sums[1]), gradients)


def share_of_single(model: LongRopeModel, name: str, single: Gradients) -> torch.Tensor:
    """Returns what of the single process's gradient this process holds under the same name."""
    tp = model.runtime.groups.tp
    whole = single[_name_alone(name, single)]
    if "linear_fc1" in name:
        return torch.cat([half.chunk(tp.size())[tp.rank()] for half in whole.chunk(2)])
    if "norm" in name:
        return whole
    return whole.chunk(tp.size(), 1 if "linear_proj" in name or "linear_fc2" in name else 0)[
        tp.rank()
    ]


def _name_alone(name: str, single: Gradients) -> str:
    """The last stage holds a copy of tied embeddings under another name."""
    return name if name in single else "embedding.word_embeddings.weight"


class Errors(NamedTuple):
    """Largest relative differences of a case, and the parameter with the worst gradient."""

    loss: float
    to_single: float
    to_transformers: float
    worst: str


def errors_of(model: LongRopeModel, step: Step, single: Step, theirs: Step) -> Errors:
    """A gradient's difference is taken relative to the norm of the whole parameter's."""
    of_hf = stage_tensors(model, theirs.gradients)
    to_single, to_hf = {}, {}
    for name, gradient in step.gradients.items():
        norm = torch.linalg.vector_norm(single.gradients[_name_alone(name, single.gradients)])
        expected = share_of_single(model, name, single.gradients)
        to_single[name], to_hf[name] = (
            float(torch.linalg.vector_norm(gradient - other) / norm)
            for other in (expected, of_hf[name])
        )
    worst = max(to_single, key=lambda name: to_single[name])
    finite = np.isfinite([*to_single.values(), *to_hf.values()]).all()
    loss = abs(step.loss / single.loss - 1) if finite else np.nan
    return Errors(loss, to_single[worst], max(to_hf.values()), worst)


def errors_of_cases(
    cases: Sequence[Case], weights: HfWeights, singles: dict[bool, Step], theirs: dict[bool, Step]
) -> list[Errors]:
    """Runs on every rank: all cases one after another, in one set of processes."""
    results = []
    with joined_processes() as store:
        for one in cases:
            with divide_processes(one.layout, torch.device("cpu"), store) as runtime:
                model = our_model(weights, runtime, recompute=one.recompute)
                step = train_step(model, one.packed)
                results.append(errors_of(model, step, singles[one.packed], theirs[one.packed]))
    return results


@pytest.fixture(scope="module")
def hf() -> Any:
    yarn = {
        "rope_theta": 10000.0,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return tiny_hf_model(num_hidden_layers=4, rope_parameters=yarn, max_position_embeddings=256)


@pytest.fixture(scope="module")
def theirs(hf: Any) -> dict[bool, Step]:
    """Loss and gradients by transformers, each document alone."""
    steps = {}
    for packed in (True, False):
        hf.zero_grad()
        rows = [document for row in documents(packed) for document in row]
        total, count = torch.zeros(()), sum(len(row) - 1 for row in rows)
        for row in rows:
            tokens = torch.from_numpy(row)
            if len(row) > 1:
                logits = hf(tokens[None]).logits[0, :-1]
                total = total + torch.nn.functional.cross_entropy(
                    logits, tokens[1:], reduction="sum"
                )
        (total / count).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in hf.named_parameters()}
        steps[packed] = Step(float(total / count), gradients)
    return steps


@pytest.fixture(scope="module")
def singles(hf: Any) -> dict[bool, Step]:
    from megatron_longrope.runtime import start_runtime

    with start_runtime(threads=1) as runtime:
        return {packed: train_step(our_model(hf, runtime), packed) for packed in (True, False)}


def test_one_process_equals_transformers(
    hf: Any, singles: dict[bool, Step], theirs: dict[bool, Step]
) -> None:
    for packed, step in singles.items():
        assert step.loss == pytest.approx(theirs[packed].loss, rel=LOSS_BAR)


@pytest.mark.parametrize(("world_size", "cases"), [(2, TWO), (4, FOUR)], ids=["2", "4"])
def test_every_layout_equals_one_process_and_transformers(
    world_size: int, cases: list[Case], hf: Any, singles: dict[bool, Step], theirs: dict[bool, Step]
) -> None:
    ranks = run_distributed(
        world_size, errors_of_cases, cases, HfWeights.of(hf), singles, theirs, timeout=360
    )
    for results in ranks:
        for one, errors in zip(cases, results, strict=True):
            assert errors.loss < LOSS_BAR, (str(one), errors)  # NaN is not below either
            assert errors.to_single < GRADIENT_BAR, (str(one), errors)
            assert errors.to_transformers < GRADIENT_BAR, (str(one), errors)
