"""Attention over one block of keys, forward and backward, that can be merged with other blocks.

A block kernel returns its log-sum-exp beside its output, so that blocks over different keys can be
merged (`merge`). Its backward takes the merged output and log-sum-exp, so that each block's part of
the gradients can be computed alone. Tensors are [batch, heads, seq, head_dim] (any strides, the
last dimension dense), log-sum-exps [batch, heads, seq]. Keys and values may have fewer heads than
queries and are never copied to as many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

FALLBACK_CHUNK = 512
"""Queries per step of the plain-torch kernel, which holds scores [heads, queries, keys]."""


class BlockKernel(Protocol):
    """Attention over one block of keys.

    A `causal` block has as many keys as queries, and query i sees keys 0 … i. In any other block
    every query sees every key.
    """

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Returns the output and its log-sum-exp."""
        ...

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the block's part of the gradients of q, k, v.

        Args:
            grad: Gradient of the merged output.
            q: Queries of the block.
            k: Keys of the block.
            v: Values of the block.
            out: Merged output over all keys.
            lse: Merged log-sum-exp over all keys.
            causal: As in `forward`.
            scale: Factor of q·k before the softmax.
        """
        ...


def kernel_for(query: Tensor) -> BlockKernel:
    """Returns the fastest kernel that takes this device, dtype and head size.

    torch's CPU flash kernel takes every float type, float64 too. Its CUDA kernel takes half
    precision and head sizes that are multiples of 8 up to 256. The rest (float32 and float64 on a
    GPU, which only comparisons use) goes to plain torch.
    """
    if query.device.type == "cpu":
        return _CpuFlash()
    head_dim = query.shape[-1]
    if query.dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256:
        return _CudaFlash()
    return PlainTorch()


class _CpuFlash:
    """The CPU's flash kernel of torch, by its internal name: the public one hides log-sum-exps."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )
        return grads  # type: ignore[no-any-return]


class _CudaFlash:
    """CUDA's flash kernel of torch, by its internal name: the public one hides log-sum-exps."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, causal, False, scale=scale
        )
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The random state of dropout, which the kernel takes but does not read without dropout.
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad,
            q,
            k,
            v,
            out,
            lse.contiguous(),
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            causal,
            unused,
            unused[:1],
            scale=scale,
        )
        return grads  # type: ignore[no-any-return]


class PlainTorch:
    """The kernel in plain torch, for any device and float type, a chunk of queries at a time.

    Scores and sums are float32 at least.
    """

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=_sum_dtype(q.dtype))
        for rows in _chunks(q.shape[2]):
            scores = _scores(q[:, :, rows], k, rows.start, causal, scale)
            lse[:, :, rows] = scores.logsumexp(-1).flatten(1, 2)
            weights = (scores - lse[:, :, rows].unflatten(1, scores.shape[1:3]).unsqueeze(-1)).exp()
            out[:, :, rows] = (weights @ v.unsqueeze(2).to(weights.dtype)).flatten(1, 2).to(q.dtype)
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _sum_dtype(q.dtype)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        groups = (k.shape[1], q.shape[1] // k.shape[1])
        for rows in _chunks(q.shape[2]):
            queries, upstream = (x[:, :, rows].unflatten(1, groups).to(wide) for x in (q, grad))
            delta = (upstream * out[:, :, rows].unflatten(1, groups)).sum(-1, keepdim=True)
            # P = exp(S − L); dV = Pᵀ·dO; dP = dO·Vᵀ; dS = P ∘ (dP − D) with D = Σ dO·O (`delta`);
            # dQ = scale · dS·K; dK = scale · dSᵀ·Q. `grad_scores` has the scale in it.
            scores = _scores(q[:, :, rows], k, rows.start, causal, scale)
            weights = (scores - lse[:, :, rows].unflatten(1, groups).unsqueeze(-1)).exp()
            grad_scores = (
                weights * (upstream @ v.unsqueeze(2).to(wide).transpose(-1, -2) - delta) * scale
            )
            grad_q[:, :, rows] = (grad_scores @ k.unsqueeze(2).to(wide)).flatten(1, 2).to(q.dtype)
            grad_k += (grad_scores.transpose(-1, -2) @ queries).sum(2)
            grad_v += (weights.transpose(-1, -2) @ upstream).sum(2)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Merges another block over the same queries into `out` and `lse`, in place.

    For blocks b over different keys, the softmax over all their keys gives

        lse = log Σ_b exp(lse_b)    and    out = Σ_b exp(lse_b − lse) · out_b

    For two blocks the second one's weight is exp(lse₂) / (exp(lse₁) + exp(lse₂)) =
    sigmoid(lse₂ − lse₁), which cannot overflow, and the first one's is 1 minus that: a `lerp`.
    """
    weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    out.lerp_(other_out.to(out.dtype), weight.to(out.dtype))
    lse.copy_(torch.logaddexp(lse, other_lse))


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, FALLBACK_CHUNK):
        yield slice(start, min(start + FALLBACK_CHUNK, length))


def _scores(q: Tensor, k: Tensor, first: int, causal: bool, scale: float) -> Tensor:
    """Returns scaled scores [batch, kv_heads, heads per kv head, queries, keys].

    `first` is the position of the first query; a causal mask hides all keys after each query.
    """
    wide = _sum_dtype(q.dtype)
    grouped = q.unflatten(1, (k.shape[1], q.shape[1] // k.shape[1])).to(wide)
    scores: Tensor = (grouped @ k.unsqueeze(2).to(wide).transpose(-1, -2)) * scale
    if causal:
        rows = torch.arange(first, first + q.shape[2], device=q.device)[:, None]
        scores.masked_fill_(torch.arange(k.shape[2], device=q.device) > rows, -math.inf)
    return scores
