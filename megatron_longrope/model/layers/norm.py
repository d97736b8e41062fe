"""RMSNorm for layers without Transformer Engine, sequence parallelism included."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """The norm x · w / √(mean(x²) + ε), computed in float32 at least, as Hugging Face's Llama does.

    megatron-core's wrapper of torch's norm (`WrappedTorchNorm`) refuses sequence parallelism. All
    that it takes is a mark on the weight: each tensor-parallel rank's gradient is that of its share
    of the sequence, and megatron-core sums the gradients of weights marked so.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object
    ) -> None:
        super().__init__()
        self.eps = eps
        # On the device at once, as megatron-core's own layers; the CPU platform answers with "cpu".
        device = torch.cuda.current_device()
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=device)
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the normalized `hidden` [..., hidden_size] in its own dtype."""
        wide = hidden if hidden.dtype in (torch.float32, torch.float64) else hidden.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(hidden.dtype)
