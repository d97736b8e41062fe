"""Block kernels and their merging against attention written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longrope.model.attention import kernels as attention_kernels
from megatron_longrope.model.attention.kernels import BlockKernel, PlainTorch, kernel_for, merge
from megatron_longrope.model.rotary import rotate

SCALE = 0.3


def tensors(
    queries: int, keys: int, kv_heads: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """q, k, v of two documents with four query heads, laid out as attention gets them, and a
    gradient."""
    torch.manual_seed(0)
    shapes = [
        (2, queries, 4, 16),
        (2, keys, kv_heads, 16),
        (2, keys, kv_heads, 16),
        (2, queries, 4, 16),
    ]
    return [torch.randn(shape, dtype=dtype).transpose(1, 2) for shape in shapes]


def written_out(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * SCALE
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.fixture(params=["flash", "plain"])
def kernel(request: Any, monkeypatch: pytest.MonkeyPatch) -> BlockKernel:
    monkeypatch.setattr(attention_kernels, "FALLBACK_CHUNK", 7)
    return PlainTorch() if request.param == "plain" else kernel_for(torch.zeros(1))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("queries", "keys", "causal"), [(20, 20, True), (1, 1, True), (20, 9, False), (5, 33, False)]
)
def test_a_block_equals_attention_written_out(
    queries: int, keys: int, causal: bool, kv_heads: int, kernel: BlockKernel
) -> None:
    q, k, v, grad = tensors(queries, keys, kv_heads)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected, expected_sum = written_out(*leaves, causal)
    expected.backward(grad)
    out, lse = kernel.forward(q, k, v, causal, SCALE)
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(lse, expected_sum.detach())
    for found, leaf in zip(
        kernel.backward(grad, q, k, v, out, lse, causal, SCALE), leaves, strict=True
    ):
        torch.testing.assert_close(found, leaf.grad)


def test_merged_blocks_equal_attention_to_all_their_keys(kernel: BlockKernel) -> None:
    q, k, v, grad = tensors(11, 30, 2)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected, _ = written_out(*leaves, False)
    expected.backward(grad)
    parts = [slice(0, 4), slice(4, 5), slice(5, 30)]
    out, lse = kernel.forward(q, k[:, :, parts[0]], v[:, :, parts[0]], False, SCALE)
    for part in parts[1:]:
        merge(out, lse, *kernel.forward(q, k[:, :, part], v[:, :, part], False, SCALE))
    torch.testing.assert_close(out, expected.detach())
    grads = [
        kernel.backward(grad, q, k[:, :, part], v[:, :, part], out, lse, False, SCALE)
        for part in parts
    ]
    torch.testing.assert_close(sum(g[0] for g in grads), leaves[0].grad)
    torch.testing.assert_close(torch.cat([g[1] for g in grads], 2), leaves[1].grad)
    torch.testing.assert_close(torch.cat([g[2] for g in grads], 2), leaves[2].grad)


def test_merging_survives_blocks_that_weigh_nothing() -> None:
    out, lse = torch.ones(1, 1, 2, 4), torch.tensor([[[800.0, -800.0]]])
    merge(out, lse, torch.zeros(1, 1, 2, 4), torch.tensor([[[-800.0, 800.0]]]))
    assert out[0, 0, :, 0].tolist() == [1.0, 0.0] and lse.flatten().tolist() == [800.0, 800.0]


def test_plain_torch_keeps_half_precision_sums_in_float32() -> None:
    q, k, v, _ = tensors(40, 40, 2, torch.bfloat16)
    out, lse = PlainTorch().forward(q, k, v, True, SCALE)
    expected, expected_sum = written_out(q.double(), k.double(), v.double(), True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), expected_sum, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)


def test_rotation_turns_pairs_as_complex_numbers_and_differentiates_in_both() -> None:
    torch.manual_seed(1)
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    turned = (
        torch.complex(x[..., :4], x[..., 4:])
        * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    torch.testing.assert_close(rotate(x, angles), torch.cat([turned.real, turned.imag], -1))
    assert torch.autograd.gradcheck(rotate, (x, angles))
    place = x.detach().clone()
    assert rotate(place, angles.detach(), overwrite=True) is place
    torch.testing.assert_close(place, rotate(x, angles).detach())
