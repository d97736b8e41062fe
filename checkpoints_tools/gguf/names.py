"""Names of a Llama's weights in llama.cpp, and the order of rows it wants in q and k."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from torch import Tensor

from megatron_longrope.errors import MissingDependencyError
from megatron_longrope.model import ModelShape

ARCHITECTURE = "llama"
"""The one architecture whose files are read and written here, by its name in llama.cpp."""
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
LLAMA3_FACTORS = "rope_freqs.weight"
ROPE_TENSORS = (LONG_FACTORS, SHORT_FACTORS, LLAMA3_FACTORS)
_PER_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ONCE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(hf_name: str) -> str | None:
    """Returns llama.cpp's name of a Hugging Face weight; None where it has no name for it.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    part = hf_name.removesuffix(".weight")
    if part == hf_name:
        return None
    words = part.split(".")
    if words[:2] == ["model", "layers"] and len(words) > 3:
        inner = _PER_LAYER.get(".".join(words[3:]))
        return f"blk.{words[2]}.{inner}.weight" if inner else None
    return f"{_ONCE[part]}.weight" if part in _ONCE else None


def hf_names(num_layers: int) -> dict[str, str]:
    """Returns the Hugging Face name of every weight of a model, by llama.cpp's name."""
    layers = (
        f"model.layers.{layer}.{part}.weight" for layer in range(num_layers) for part in _PER_LAYER
    )
    return {str(gguf_name(name)): name for name in [*(f"{part}.weight" for part in _ONCE), *layers]}


def rotated_heads(hf_name: str, shape: ModelShape) -> int | None:
    """Returns the number of heads of a q or k weight, whose rows llama.cpp reorders, or None."""
    if hf_name.endswith("self_attn.q_proj.weight"):
        return shape.num_heads
    return shape.num_kv_heads if hf_name.endswith("self_attn.k_proj.weight") else None


def permuted(tensor: Tensor, heads: int) -> Tensor:
    """Returns rows of q or k in llama.cpp's order, the two dims of each RoPE pair side by side.

    Hugging Face has dims i and i + head_dim/2 of a head as pair i; llama.cpp, like Meta's own code,
    has dims 2i and 2i + 1.
    """
    per_head = tensor.shape[0] // heads
    halves = tensor.reshape(heads, 2, per_head // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def unpermuted(tensor: Tensor, heads: int) -> Tensor:
    """Returns rows of q or k in Hugging Face's order; the inverse of `permuted`."""
    per_head = tensor.shape[0] // heads
    pairs = tensor.reshape(heads, per_head // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def block_sizes() -> Mapping[int, tuple[int, int]]:
    """Returns (values, bytes) of a block for each of ggml's block types.

    Raises MissingDependencyError where the package `gguf` is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(
            "Python package gguf is not installed: pip install 'megatron-longrope[gguf]'"
        )
    from gguf import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
