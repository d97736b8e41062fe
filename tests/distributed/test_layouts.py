"""Tensor, sequence, pipeline and data parallelism give what one process gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.artifacts.rows import EvaluationLabels
from megatron_longrope.data import DocumentBatch
from megatron_longrope.evaluation import (
    EvaluationDocument,
    PerplexityObjective,
    SlidingWindow,
    measure_perplexity,
)
from megatron_longrope.model import LongRopeModel, document_logits, score_documents
from megatron_longrope.model.forward import run_stage
from megatron_longrope.runtime import ParallelLayout, Runtime, start_runtime
from tests.support.spawn import run_distributed
from tests.support.tiny_models import (
    HfWeights,
    our_model,
    random_documents,
    stage_tensors,
    tiny_hf_model,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
LAYOUTS = {
    "TP2": ParallelLayout(tensor_parallel=2),
    "TP2+SP": ParallelLayout(tensor_parallel=2, sequence_parallel=True),
    "PP2": ParallelLayout(pipeline_parallel=2),
}
YARN = {
    "rope_parameters": {
        "rope_theta": 10000.0,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "max_position_embeddings": 256,
}


DOCUMENTS = random_documents(64, 37, 130, 2, 9)  # odd ones are padded under sequence parallelism


class Expected(NamedTuple):
    """A random model, and the gradients transformers computes for it."""

    weights: HfWeights
    gradients: dict[str, torch.Tensor]


class Results(NamedTuple):
    """What one rank saw: scores of documents, logits of one, losses, and gradients of its stage
    beside HF's."""

    nll: list[np.ndarray]
    correct: list[np.ndarray]
    logits: np.ndarray
    losses: np.ndarray | None
    gradients: dict[str, tuple[np.ndarray, np.ndarray]]


def results_of_layout(layout: ParallelLayout, models: list[Expected]) -> list[Results]:
    """Runs on every rank: for each model scores, logits, and one training step's gradients beside
    transformers'."""
    with start_runtime(layout, threads=1) as runtime:
        return [_results(runtime, expected) for expected in models]


def _results(runtime: Runtime, expected: Expected) -> Results:
    model = our_model(expected.weights, runtime)
    scores = score_documents(model, DOCUMENTS)
    logits = document_logits(model, DOCUMENTS[1])
    losses, gradients = _train_step(model, DOCUMENTS)
    others = stage_tensors(model, expected.gradients)
    pairs = {name: (gradient, others[name].numpy()) for name, gradient in gradients.items()}
    return Results(
        [score.nll for score in scores], [score.correct for score in scores], logits, losses, pairs
    )


def _train_step(
    model: LongRopeModel, documents: list[np.ndarray]
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """One forward and backward pass by megatron-core's schedule and gradient finalization, as
    training does it."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.pipeline_parallel import get_forward_backward_func

    stage = model.stage
    wrapped = DistributedDataParallel(stage.config, DistributedDataParallelConfig(), stage)
    stage.config.finalize_model_grads_func = finalize_model_grads
    pad = model.runtime.layout.sequence_divisor
    kept: list[np.ndarray] = []

    def step(batches: Any, module: Any) -> Any:
        batch = next(batches)
        output = run_stage(model, module, batch)

        def loss(losses: torch.Tensor) -> Any:
            kept.append(losses.detach().numpy()[batch.loss_mask.numpy() > 0])
            tokens = batch.loss_mask.sum().int()
            return (losses * batch.loss_mask).sum(), tokens, {"tokens": tokens}

        return output, loss

    batches = [DocumentBatch.from_documents(part, pad) for part in (documents[:2], documents[2:])]
    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(batches),
        model=[wrapped],
        num_microbatches=2,
        seq_length=batches[0].tokens.numel(),
        micro_batch_size=1,
        forward_only=False,
    )
    gradients = {
        name: parameter.main_grad.numpy().copy() for name, parameter in model.named_parameters()
    }
    return (np.concatenate(kept) if kept else None), gradients


@pytest.fixture(scope="module")
def models() -> list[Expected]:
    """A model with tied and one with untied embeddings."""
    return [_expected(tied) for tied in (True, False)]


def _expected(tied: bool) -> Expected:
    """Gradients are of the mean loss over all predictions."""
    hf = tiny_hf_model(tie_word_embeddings=tied, num_hidden_layers=4, **YARN)
    weights = HfWeights.of(hf)
    total = torch.zeros(())
    for document in DOCUMENTS:
        tokens = torch.from_numpy(document)
        total = total + torch.nn.functional.cross_entropy(
            hf(tokens[None]).logits[0, :-1], tokens[1:], reduction="sum"
        )
    (total / sum(len(document) - 1 for document in DOCUMENTS)).backward()
    return Expected(weights, {name: parameter.grad for name, parameter in hf.named_parameters()})


@pytest.fixture(scope="module")
def alone(models: list[Expected]) -> list[Results]:
    return results_of_layout(ParallelLayout(), models)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_and_gradients_equal_one_process(
    layout: str, models: list[Expected], alone: list[Results]
) -> None:
    ranks = run_distributed(2, results_of_layout, LAYOUTS[layout], models)
    for first, second, single in zip(*ranks, alone, strict=True):
        for rank in (first, second):
            _assert_close(rank, single)
        assert np.array_equal(first.logits, second.logits)
        assert all(np.array_equal(a, b) for a, b in zip(first.nll, second.nll, strict=True))
        assert (first.losses is None) == (layout == "PP2") and second.losses is not None


def test_one_process_has_the_gradients_of_transformers(alone: list[Results]) -> None:
    for single in alone:
        _assert_close(single, single)


def _assert_close(rank: Results, single: Results) -> None:
    for one, other in zip(single.nll, rank.nll, strict=True):
        np.testing.assert_allclose(other, one, atol=3e-5, rtol=0)
    for one, other in zip(single.correct, rank.correct, strict=True):
        np.testing.assert_array_equal(other, one)
    np.testing.assert_allclose(rank.logits, single.logits, atol=1e-4, rtol=0)
    if rank.losses is not None:
        np.testing.assert_allclose(rank.losses, single.losses, atol=3e-5, rtol=0)
    assert rank.gradients
    for name, (gradient, expected) in rank.gradients.items():
        np.testing.assert_allclose(gradient, expected, atol=3e-5, rtol=2e-4, err_msg=name)


def evaluations(layout: ParallelLayout, weights: HfWeights) -> tuple[list[Any], list[Any]]:
    """Runs on every rank: a search objective on seven candidates, and perplexity of five
    documents."""
    with start_runtime(layout, threads=1) as runtime:
        model = our_model(weights, runtime)
        documents = random_documents(200, 70, seed=4)
        candidates = [
            Candidate((1.0,) * 4 + (1.0 + 0.5 * i,) * 4, 4 * i, 1.0 + 0.01 * i) for i in range(7)
        ]
        objective = PerplexityObjective(model, documents, target_length=256)
        return [evaluation.to_json() for evaluation in objective(candidates)], _perplexity_rows(
            model
        )


def _perplexity_rows(model: LongRopeModel) -> list[Any]:
    texts = [
        EvaluationDocument(f"d{i}", tokens)
        for i, tokens in enumerate(random_documents(90, 95, 80, 85, 90))
    ]
    labels = EvaluationLabels("base", "none")
    return [
        row.to_json()
        for sliding in (None, SlidingWindow(32, 8))
        for row in measure_perplexity(
            model, texts, 80, labels, sliding=sliding, max_batch_tokens=160
        ).rows
    ]


def test_data_parallel_groups_share_the_work_and_give_the_same_bits(models: list[Expected]) -> None:
    weights = models[0].weights
    single = evaluations(ParallelLayout(), weights)
    assert run_distributed(2, evaluations, ParallelLayout(), weights) == [single, single]


def test_each_data_parallel_group_works_with_its_own_tensor_parallel_ranks(
    models: list[Expected],
) -> None:
    weights = models[0].weights
    single, _ = evaluations(ParallelLayout(), weights)
    ranks = run_distributed(4, evaluations, ParallelLayout(tensor_parallel=2), weights)
    assert all(rank == ranks[0] for rank in ranks)
    for one, other in zip(single, ranks[0][0], strict=True):
        assert other["token_counts"] == one["token_counts"]
        assert other["nll_sums"] == pytest.approx(one["nll_sums"], rel=1e-5)
