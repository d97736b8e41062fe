"""Blockwise cross-entropy against torch's own, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron_longrope.model.layers import token_loss
from megatron_longrope.model.layers.token_loss import (
    chunked_token_losses,
    full_logits,
    scored_tokens,
)
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import single_runtime

runtime = pytest.fixture(single_runtime, scope="module")
VOCABULARY = 37


def problem(
    dtype: torch.dtype, padding: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(29, 8, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY + padding, 8, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (29,))


@pytest.mark.parametrize("block", [5, 37, 2048])
@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_losses_and_gradients_equal_torchs(
    block: int, chunk: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "BLOCK_VOCABULARY", block)
    hidden, weight, labels = problem(torch.float64)
    expected = cross_entropy(hidden @ weight[:VOCABULARY].T, labels, reduction="none")
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (hidden, weight), upstream)
    found = chunked_token_losses(
        hidden, weight, labels, vocab_size=VOCABULARY, group=runtime.groups.tp, chunk_tokens=chunk
    )
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (hidden, weight), upstream), wanted, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("block", [5, 37, 2048])
@pytest.mark.parametrize("chunk", [8, 64])
def test_under_a_frozen_weight_the_gradient_is_the_same(
    block: int, chunk: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "BLOCK_VOCABULARY", block)
    hidden, weight, labels = problem(torch.float64)
    weight = weight.detach()
    expected = cross_entropy(hidden @ weight[:VOCABULARY].T, labels, reduction="none")
    upstream = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, hidden, upstream)
    found = chunked_token_losses(
        hidden, weight, labels, vocab_size=VOCABULARY, group=runtime.groups.tp, chunk_tokens=chunk
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, hidden, upstream)[0], wanted)


def test_extreme_logits_under_a_frozen_weight_have_finite_gradients(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "BLOCK_VOCABULARY", 5)
    hidden, weight, labels = problem(torch.float32)
    weight = weight.detach()
    losses = chunked_token_losses(
        hidden * 1e4, weight, labels, vocab_size=VOCABULARY, group=runtime.groups.tp
    )
    (found,) = torch.autograd.grad(losses.sum(), hidden)
    expected = cross_entropy((hidden * 1e4) @ weight[:VOCABULARY].T, labels, reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(expected, hidden)[0])


def test_half_precision_gradients_under_a_frozen_weight_are_summed_in_float32(
    runtime: Runtime,
) -> None:
    hidden, weight, labels = problem(torch.bfloat16)
    weight = weight.detach()
    losses = chunked_token_losses(
        hidden, weight, labels, vocab_size=VOCABULARY, group=runtime.groups.tp
    )
    (found,) = torch.autograd.grad(losses.sum(), hidden)
    wide = hidden.detach().double().requires_grad_()
    loss = cross_entropy(wide @ weight.double()[:VOCABULARY].T, labels, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, wide)
    assert found.dtype == torch.bfloat16
    assert torch.linalg.vector_norm(found.double() - wanted) < 8e-3 * torch.linalg.vector_norm(
        wanted
    )


def test_extreme_logits_stay_finite(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "BLOCK_VOCABULARY", 5)
    hidden, weight, labels = problem(torch.float32)
    losses = chunked_token_losses(
        hidden * 1e4, weight, labels, vocab_size=VOCABULARY, group=runtime.groups.tp
    )
    expected = cross_entropy((hidden * 1e4) @ weight[:VOCABULARY].T, labels, reduction="none")
    torch.testing.assert_close(losses, expected)


def test_half_precision_gradients_of_the_weight_are_summed_in_float32(runtime: Runtime) -> None:
    hidden, weight, labels = problem(torch.bfloat16)
    losses = chunked_token_losses(
        hidden, weight, labels, vocab_size=VOCABULARY, group=runtime.groups.tp, chunk_tokens=1
    )
    assert losses.dtype == torch.float32
    (found,) = torch.autograd.grad(losses.sum(), weight)
    wide_hidden, wide = hidden.detach().double(), weight.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(
        cross_entropy(wide_hidden @ wide[:VOCABULARY].T, labels, reduction="sum"), wide
    )
    assert found.dtype == torch.bfloat16
    assert torch.linalg.vector_norm(found.double() - wanted) < 8e-3 * torch.linalg.vector_norm(
        wanted
    )


def test_the_arg_max_is_the_lowest_of_equal_logits(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "BLOCK_VOCABULARY", 2)
    weight = torch.tensor([[1.0], [3.0], [2.0], [3.0], [3.0], [9.0]])  # the last is padding
    hidden, group = torch.ones(5, 1), runtime.groups.tp
    scores = scored_tokens(hidden, weight, torch.arange(5), vocab_size=5, group=group)
    assert scores[1].tolist() == [0, 1, 0, 0, 0]
    logits = full_logits(hidden, weight, vocab_size=5, group=group)
    torch.testing.assert_close(scores[0], cross_entropy(logits, torch.arange(5), reduction="none"))
