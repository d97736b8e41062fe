"""Context parallelism: attention itself in float64, and all that is built on it, against one
process."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_prep.documents import TokenDocument
from data_prep.writing import write_packed
from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.data import PackedBatches, PackedDataset
from megatron_longrope.data.manifest import TokenizerIdentity
from megatron_longrope.data.zigzag import share_index
from megatron_longrope.evaluation import PerplexityObjective
from megatron_longrope.model import document_logits, rotary, score_documents, score_with_gradient
from megatron_longrope.model.attention import context_parallel
from megatron_longrope.model.layers import lean_layer, token_loss
from megatron_longrope.runtime import ParallelLayout, Runtime, start_runtime
from megatron_longrope.runtime.runtime import divide_processes
from megatron_longrope.training import Trainer, TrainingConfig
from tests.support.one_world import joined_processes
from tests.support.spawn import run_distributed
from tests.support.tiny_models import (
    VOCABULARY,
    HfWeights,
    our_model,
    random_documents,
    tiny_hf_model,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

HEADS, KV_HEADS, HEAD_DIM, SCALE = 4, 2, 8, 0.3
ROWS = [[24], [1], [12, 12, 24], [1, 1, 1], [7, 30, 2, 2, 5]]
"""Documents per row: alone, of one token, equal neighbours, fewer than ranks, ending on chunk edges
and not."""


def padded(row: list[int], size: int) -> list[int]:
    return [-(-length // (2 * size)) * 2 * size for length in row]


def attention_problem(lengths: list[int]) -> list[torch.Tensor]:
    """q, k, v and an upstream gradient [tokens, heads, head_dim] in float64."""
    generator = torch.Generator().manual_seed(sum(lengths))
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [
        torch.randn(sum(lengths), n, HEAD_DIM, dtype=torch.float64, generator=generator)
        for n in heads
    ]


def attention_written_out(lengths: list[int]) -> list[torch.Tensor]:
    """Output and gradients of q, k, v of whole documents, by softmax over masked scores."""
    *leaves, upstream = attention_problem(lengths)
    q, k, v = (x.requires_grad_() for x in leaves)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (document[:, None] == document) & torch.ones(len(document), len(document)).tril().bool()
    keys, values = (x.repeat_interleave(HEADS // KV_HEADS, 1).transpose(0, 1) for x in (k, v))
    scores = (q.transpose(0, 1) @ keys.transpose(-1, -2) * SCALE).masked_fill(~seen, -torch.inf)
    out = (scores.softmax(-1) @ values).transpose(0, 1)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), upstream)]


def attention_errors() -> dict[str, float]:
    """Runs on each of four ranks: the deviation per group size, exchange and row."""
    torch.set_num_threads(1)
    # so that small rows are cut too
    (
        context_parallel.TILE_TOKENS,
        context_parallel.GROUPED_FROM_TOKENS,
        context_parallel.PIECE_TOKENS,
    ) = 3, 6, 2
    dist.init_process_group("gloo")
    groups = {size: dist.new_group(list(range(size))) for size in (1, 2, 3, 4)}
    errors = {}
    for size, exchange, row in itertools.product(groups, ("ring", "all_gather"), ROWS):
        if dist.get_rank() < size:
            errors[f"{size} {exchange} {row}"] = deviation(
                groups[size], exchange, padded(row, size), torch.float64
            )
    for exchange in ("ring", "all_gather"):
        errors[f"bfloat16 {exchange}"] = deviation(
            groups[4], exchange, padded(ROWS[-1], 4), torch.bfloat16
        )
    dist.destroy_process_group()
    return errors


def deviation(
    group: dist.ProcessGroup, exchange: str, lengths: list[int], dtype: torch.dtype
) -> float:
    """The largest error of output, gradients and evaluation on this rank, relative to each tensor's
    norm."""
    index = share_index(torch.tensor([0, *np.cumsum(lengths)]), group.rank(), group.size())
    *leaves, upstream = (x[index].to(dtype) for x in attention_problem(lengths))
    q, k, v = (x.requires_grad_() for x in leaves)
    settings: Any = {
        "document_lengths": lengths,
        "scale": SCALE,
        "group": group,
        "exchange": exchange,
    }
    out = context_parallel.attend(q, k, v, **settings)
    found = [out.detach(), *torch.autograd.grad(out, (q, k, v), upstream)]
    lost = [x.detach().clone() for x in (q, k, v)]
    found.append(context_parallel.attend(*lost, overwrite=True, **settings))
    assert all(x.dtype == dtype for x in found)
    output, *gradients = attention_written_out(lengths)
    pairs = zip(found, [output, *gradients, output], strict=True)
    return max(float((a.double() - b[index]).norm() / b.norm()) for a, b in pairs)


def test_attention_equals_attention_written_out() -> None:
    for errors in run_distributed(4, attention_errors, timeout=360):
        for name, error in errors.items():
            assert error < (1e-2 if name.startswith("bfloat16") else 1e-13), (
                name
            )  # NaN is not below either


DOCUMENTS = random_documents(64, 37, 130, 2, 9)
CANDIDATES = [Candidate((1.0,) * 4 + (1.0 + 0.5 * i,) * 4, 4 * i, 1.0 + 0.01 * i) for i in range(3)]
LAYOUTS = {
    "CP4": ParallelLayout(context_parallel=4),
    "CP2·DP2": ParallelLayout(context_parallel=2),
    "TP2·CP2·SP": ParallelLayout(tensor_parallel=2, context_parallel=2, sequence_parallel=True),
    "PP2·CP2": ParallelLayout(pipeline_parallel=2, context_parallel=2),
    "PP2·VPP2·CP2": ParallelLayout(pipeline_parallel=2, virtual_pipeline=2, context_parallel=2),
}


class Seen(NamedTuple):
    """All that is public and runs the model."""

    nll: list[np.ndarray]
    correct: list[np.ndarray]
    logits: np.ndarray
    evaluations: list[tuple[float, ...]]
    factor_gradient: np.ndarray
    losses: list[float]
    gradient_norms: list[float]


def all_layouts(weights: HfWeights, dataset: Path) -> dict[str, Seen]:
    """Runs on each of four ranks."""
    # small documents are cut in many pieces, as long ones are
    lean_layer.SMALLEST_CHUNK, rotary.CHUNK_TOKENS, token_loss.BLOCK_VOCABULARY = 8, 16, 50
    (
        context_parallel.TILE_TOKENS,
        context_parallel.GROUPED_FROM_TOKENS,
        context_parallel.PIECE_TOKENS,
    ) = 8, 16, 6
    seen = {}
    with joined_processes() as store:
        for name, layout in LAYOUTS.items():
            with divide_processes(layout, torch.device("cpu"), store) as runtime:
                seen[name] = everything(runtime, weights, dataset)
    return seen


def everything(runtime: Runtime, weights: HfWeights, dataset: Path) -> Seen:
    model = our_model(weights, runtime, angle_precision="float64")
    scores = score_documents(model, DOCUMENTS, max_batch_tokens=200)
    objective = PerplexityObjective(model, DOCUMENTS[:2], target_length=256)
    evaluations = [tuple(evaluation.nll_sums) for evaluation in objective(CANDIDATES)]
    _, gradient = score_with_gradient(
        model, DOCUMENTS, [np.ones(len(d) - 1) for d in DOCUMENTS], max_batch_tokens=140
    )
    logits = document_logits(model, DOCUMENTS[1])
    config = TrainingConfig(steps=2, global_batch_size=4, learning_rate=1e-3, warmup_steps=0)
    batches = PackedBatches(
        PackedDataset(dataset),
        4,
        runtime.data_parallel_rank,
        runtime.data_parallel_size,
        pad_to_multiple=runtime.layout.sequence_divisor,
    )
    reports: list[Any] = []
    Trainer(model, batches, config, [_Keep(reports)]).train()
    return Seen(
        [score.nll for score in scores],
        [score.correct for score in scores],
        logits,
        evaluations,
        np.append(gradient.rescale, gradient.attention_factor),
        [r.loss for r in reports],
        [r.gradient_norm for r in reports],
    )


class _Keep:
    def __init__(self, reports: list[Any]) -> None:
        self.reports = reports

    def after_step(self, trainer: Trainer, report: Any) -> None:
        self.reports.append(report)


def test_everything_public_gives_what_one_process_gives(tmp_path: Path) -> None:
    documents = [
        TokenDocument.generated(str(i), d)
        for i, d in enumerate(random_documents(40, 24, 64, 10, 54, 30, 34))
    ]
    dataset = tmp_path / "train"
    write_packed(
        dataset, documents, 64, TokenizerIdentity(name="none", sha256="0" * 64), VOCABULARY
    )
    weights = HfWeights.of(tiny_hf_model(num_hidden_layers=4))
    with start_runtime(threads=1) as runtime:
        single = everything(runtime, weights, dataset)
    ranks = run_distributed(4, all_layouts, weights, dataset, timeout=360)
    for name, seen in ((name, seen) for rank in ranks for name, seen in rank.items()):
        for one, other in zip(single.nll, seen.nll, strict=True):
            np.testing.assert_allclose(other, one, atol=3e-5, rtol=0, err_msg=name)
        for one, other in zip(single.correct, seen.correct, strict=True):
            np.testing.assert_array_equal(other, one, err_msg=name)
        np.testing.assert_allclose(seen.logits, single.logits, atol=1e-4, rtol=0, err_msg=name)
        np.testing.assert_allclose(seen.evaluations, single.evaluations, rtol=1e-6, err_msg=name)
        difference = np.linalg.norm(seen.factor_gradient - single.factor_gradient)
        assert difference < 1e-5 * np.linalg.norm(single.factor_gradient), name
        np.testing.assert_allclose(seen.losses, single.losses, rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(
            seen.gradient_norms, single.gradient_norms, rtol=2e-5, err_msg=name
        )
    for layout in LAYOUTS:
        assert all(np.array_equal(rank[layout].logits, ranks[0][layout].logits) for rank in ranks)
