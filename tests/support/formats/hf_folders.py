"""Writes random Llama models as Hugging Face folders without transformers or our own writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_longrope.model import ModelShape

SHAPE = ModelShape(
    num_layers=2,
    hidden_size=24,
    ffn_hidden_size=40,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=203,
    context_length=64,
)
CARRIED = {
    "tokenizer.json": '{"version": "1.0"}',
    "generation_config.json": '{"eos_token_id":2}',
    "chat_template.jinja": "{{ messages }}\n",
    "LICENSE": "as is\n",
}


def random_weights(
    shape: ModelShape, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Returns random weights of a model by transformers' names."""
    generator = torch.Generator().manual_seed(seed)
    hidden, ffn, vocab = shape.hidden_size, shape.ffn_hidden_size, shape.vocab_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not shape.tie_embeddings:
        sizes["lm_head.weight"] = (vocab, hidden)
    for layer in range(shape.num_layers):
        parts = {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        sizes |= {f"model.layers.{layer}.{name}.weight": size for name, size in parts.items()}
    return {
        name: (torch.randn(size, generator=generator) * 0.3).to(dtype)
        for name, size in sizes.items()
    }


def random_hf_folder(
    path: Path,
    shape: ModelShape = SHAPE,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Writes a model folder with an oddly formatted config.json and files to carry along."""
    path.mkdir(parents=True)
    settings = (
        shape.to_hf()
        | {"rope_theta": shape.rope_base, "bos_token_id": 1, "torch_dtype": str(dtype)[6:]}
        | config
    )
    (path / "config.json").write_text(json.dumps(settings, indent=7))
    for name, text in CARRIED.items():
        (path / name).write_text(text)
    save_file(
        random_weights(shape, dtype, seed), path / "model.safetensors", metadata={"format": "pt"}
    )
    return path
