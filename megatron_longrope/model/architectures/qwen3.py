"""The Qwen3 family: norms of each head's queries and keys, no biases, windows as in Qwen2."""

from __future__ import annotations

from megatron_longrope.model.architectures.base import ARCHITECTURES, COMMON_ONLY
from megatron_longrope.model.architectures.qwen2 import Qwen2
from megatron_longrope.model.architectures.weights import (
    EMBEDDING,
    FC1,
    FC2,
    FINAL_NORM,
    IN_NORM,
    K_NORM,
    MLP_NORM,
    OUTPUT,
    PROJ,
    Q_NORM,
    QKV,
)


class Qwen3(Qwen2):
    """Dense Qwen3 models; `head_dim` does not follow from the hidden size, so a config has it."""

    model_type = "qwen3"
    hf_class = "Qwen3ForCausalLM"
    weights = (
        *(EMBEDDING, IN_NORM, QKV, Q_NORM, K_NORM, PROJ),
        *(MLP_NORM, FC1, FC2, FINAL_NORM, OUTPUT),
    )
    only = COMMON_ONLY | {"attention_bias": False}
    must_say = ("num_key_value_heads", "head_dim")
    megatron_flags = frozenset({"qk_layernorm"})


ARCHITECTURES.register(Qwen3.model_type, Qwen3())
