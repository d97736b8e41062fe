"""Writes small GGUF files of Llama models with the `gguf` package alone, not with our exporter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from megatron_longrope.model import ModelShape
from tests.support.formats.hf_folders import random_weights

SHAPE = ModelShape(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=160,
    context_length=64,
)
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LLAMA_KEYS: dict[str, Any] = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 16,
    "rope.freq_base": 10000.0,
    "vocab_size": 160,
}


def gguf_name(hf_name: str) -> str:
    """Returns llama.cpp's name of a Hugging Face weight."""
    part = hf_name.removesuffix(".weight")
    if part.startswith("model.layers."):
        layer, inner = part.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[inner]}.weight"
    return f"{NAMES[part]}.weight"


def llama_cpp_rows(hf_name: str, values: np.ndarray, shape: ModelShape = SHAPE) -> np.ndarray:
    """Returns a weight's rows as llama.cpp's converter orders them; q and k pair by pair."""
    heads = {"q_proj": shape.num_heads, "k_proj": shape.num_kv_heads}.get(hf_name.split(".")[-2])
    if heads is None:
        return values
    order = [
        h * shape.head_dim + half * shape.head_dim // 2 + i
        for h in range(heads)
        for i in range(shape.head_dim // 2)
        for half in (0, 1)
    ]
    return values[order]


def write_gguf(
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    keys: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    rounded: bool = False,
) -> dict[str, torch.Tensor]:
    """Writes a random model without tokenizer and returns its float32 weights by HF names.

    Args:
        path: the file to write.
        kind: block type of the matrices; vectors are float32.
        keys: added to the `llama.*` keys. The value None removes a key; a key that begins with a
            dot is a whole name.
        extra: further tensors by name.
        seed: fixes the weights.
        rounded: whether all weights fit into bfloat16.
    """
    writer = GGUFWriter(path, "llama")
    for key, value in (LLAMA_KEYS | dict(keys or {})).items():
        add_key(writer, key.removeprefix(".") if key.startswith(".") else f"llama.{key}", value)
    weights = random_weights(SHAPE, seed=seed)
    if rounded:
        weights = {name: weight.bfloat16().float() for name, weight in weights.items()}
    for name, weight in weights.items():
        values = llama_cpp_rows(name, weight.numpy())
        if weight.dim() == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), values)
        else:
            writer.add_tensor(gguf_name(name), quantize(values, kind), raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def add_key(writer: Any, key: str, value: Any) -> None:
    """Adds a key with the type llama.cpp's converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        writer.add_string(key, value)
