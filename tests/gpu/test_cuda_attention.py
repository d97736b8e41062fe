"""On a CUDA device: the flash kernel block by block against plain torch in float64, and offload to
pinned memory."""

from __future__ import annotations

import pytest
import torch

from megatron_longrope.data import DocumentBatch
from megatron_longrope.model.attention.kernels import PlainTorch, _CudaFlash, kernel_for, merge
from megatron_longrope.model.forward import run_stage
from megatron_longrope.runtime import start_runtime
from tests.support.tiny_models import our_model, random_documents, tiny_hf_model

pytestmark = pytest.mark.gpu
SCALE = 0.2


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = torch.linalg.vector_norm(found.double() - expected)
    return bool(difference < 1e-2 * torch.linalg.vector_norm(expected))


@pytest.mark.parametrize("kv_heads", [2, 8])
def test_a_causal_and_a_full_block_merge_to_the_whole(kv_heads: int) -> None:
    torch.manual_seed(0)
    heads, dtype = (8, kv_heads, kv_heads, 8), torch.bfloat16
    q, k, v, grad = (
        torch.randn(2, 192, n, 64, device="cuda", dtype=dtype).transpose(1, 2) for n in heads
    )
    kernel, exact = kernel_for(q), PlainTorch()
    assert isinstance(kernel, _CudaFlash) and isinstance(kernel_for(q.float()), PlainTorch)
    wide = [x.double() for x in (q, k, v)]
    late, early = slice(64, 192), slice(0, 64)
    expected, lse = exact.forward(*wide, True, SCALE)
    found, found_lse = kernel.forward(q[:, :, late], k[:, :, late], v[:, :, late], True, SCALE)
    found = found.float()
    merge(
        found,
        found_lse,
        *kernel.forward(q[:, :, late], k[:, :, early], v[:, :, early], False, SCALE),
    )
    assert _near(found, expected[:, :, late]) and (found_lse - lse[:, :, late]).abs().max() < 1e-2
    wanted = exact.backward(grad.double(), *wide, expected, lse, True, SCALE)
    whole, whole_lse = kernel.forward(q, k, v, True, SCALE)
    gradients = kernel.backward(grad, q, k, v, whole, whole_lse, True, SCALE)
    assert all(_near(a, b) for a, b in zip(gradients, wanted, strict=True))


def test_offloaded_inputs_give_the_same_gradients() -> None:
    found = []
    with start_runtime() as runtime:
        for offload in (False, True):
            model = our_model(tiny_hf_model(), runtime, recompute="full", offload=offload)
            batch = DocumentBatch.from_documents(random_documents(33, 20))
            losses = run_stage(model, model.stage, batch)
            (losses * batch.loss_mask.to(losses.device)).sum().backward()
            found.append(
                [
                    parameter.grad
                    for parameter in model.stage.parameters()
                    if parameter.grad is not None
                ]
            )
    for without, with_offload in zip(*found, strict=True):
        torch.testing.assert_close(with_offload, without)
