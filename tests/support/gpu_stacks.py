"""GPUs and software versions to test the choice of the backend with, without a GPU."""

from __future__ import annotations

from megatron_longrope.model import ModelShape
from megatron_longrope.runtime.gpu_stack import GpuStack

H100 = GpuStack(
    capability=(9, 0),
    cuda="13.0",
    cudnn=(9, 19, 0),
    transformer_engine="2.11.0",
    flash_attn="2.8.3",
)
A100 = GpuStack(
    capability=(8, 0), cuda="12.8", cudnn=(9, 10, 2), transformer_engine="2.9.0", flash_attn="2.8.3"
)
B200 = GpuStack(
    capability=(10, 0),
    cuda="13.0",
    cudnn=(9, 19, 0),
    transformer_engine="2.11.0",
    flash_attn="2.8.3",
)
RTX5090 = GpuStack(
    capability=(12, 0),
    cuda="13.0",
    cudnn=(9, 19, 0),
    transformer_engine="2.11.0",
    flash_attn="2.8.3",
)
V100 = GpuStack(
    capability=(7, 0), cuda="12.8", cudnn=(9, 10, 2), transformer_engine="2.9.0", flash_attn="2.8.3"
)

LLAMA_8B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    context_length=8192,
    rope_base=500000.0,
)
SMALL = ModelShape(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=203,
    context_length=64,
)
