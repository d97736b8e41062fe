"""The Llama family: Llama 2 and 3, SmolLM 1 and 2; other families differ from it."""

from __future__ import annotations

from megatron_longrope.model.architectures.base import ARCHITECTURES, COMMON_ONLY, Architecture
from megatron_longrope.model.architectures.weights import (
    EMBEDDING,
    FC1,
    FC2,
    FINAL_NORM,
    IN_NORM,
    MLP_NORM,
    OUTPUT,
    PROJ,
    QKV,
)


class Llama(Architecture):
    """Llama: grouped K/V heads, separate projections, no biases, no windows."""

    model_type = "llama"
    hf_class = "LlamaForCausalLM"
    weights = (EMBEDDING, IN_NORM, QKV, PROJ, MLP_NORM, FC1, FC2, FINAL_NORM, OUTPUT)
    only = COMMON_ONLY | {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    unwritten = ("pretraining_tp",)
    megatron_flags = frozenset()
    gguf_architecture = "llama"


ARCHITECTURES.register(Llama.model_type, Llama())
