"""Random small models of every supported family, made and run by transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "seed_oss", "smollm3")
WINDOW = 256
LENGTH = 512


def random_config(family: str, seed: int) -> Any:
    """Returns a random small config that varies every setting its family has.

    These are heads, head_dim, vocabulary, tied embeddings, attention windows, layers without RoPE
    and RoPE scaling.
    """
    from transformers import CONFIG_MAPPING

    draw = random.Random(f"{family}{seed}")
    ratio, kv_heads = (1, 3, 8)[seed % 3], draw.choice([2, 4])
    head_dim, heads = draw.choice([8, 16, 32]), ratio * kv_heads
    window = draw.choice([None, 5, 100, 700])
    settings: dict[str, Any] = {
        "num_hidden_layers": 4,
        "hidden_size": heads * draw.choice([2, 4, 8]),  # in general not heads · head_dim
        "intermediate_size": draw.choice([24, 64]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": draw.choice([128, 203, 300]),
        "max_position_embeddings": WINDOW,
        "rms_norm_eps": draw.choice([1e-5, 1e-6]),
        "tie_word_embeddings": bool(seed % 2),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_rope(draw, family, head_dim),
    }
    if family in ("mistral", "phi3"):
        settings["sliding_window"] = window
    elif family not in ("llama", "seed_oss"):
        settings |= {"use_sliding_window": window is not None, "sliding_window": window}
    if family in ("qwen2", "qwen3"):
        settings["max_window_layers"] = draw.choice([0, 1, 3])
    if family == "smollm3" and draw.random() < 0.5:
        settings["no_rope_layers"] = [draw.choice([0, 1]) for _ in range(4)]
    return CONFIG_MAPPING[family](**settings)


def _rope(draw: random.Random, family: str, head_dim: int) -> dict[str, Any]:
    """Returns RoPE settings of a random rope_type other than dynamic; phi3 knows two."""
    kinds = (
        ["default", "longrope"]
        if family == "phi3"
        else ["default", "linear", "yarn", "llama3", "longrope"]
    )
    kind = draw.choice(kinds)
    values: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.choice([10000.0, 1e6])}
    if kind != "default":
        values["factor"] = 4.0
    if kind == "llama3":
        values |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        values |= {
            name: sorted(1 + 6 * draw.random() for _ in range(head_dim // 2))
            for name in ("short_factor", "long_factor")
        }
    settings = {"rope_parameters": values}
    if kind in ("yarn", "llama3", "longrope"):
        values["original_max_position_embeddings"] = WINDOW
        settings |= {"max_position_embeddings": 4 * WINDOW}  # type: ignore[dict-item]
    if family == "phi3":
        settings["original_max_position_embeddings"] = WINDOW  # type: ignore[assignment]
    return settings


def random_family_model(family: str, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Returns transformers' model of `random_config`, weights enlarged for uneven attention."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        random_config(family, seed), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(5)
    return model.to(dtype)


def save_family(folder: Path, family: str, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Writes a random model in several shards with transformers, and returns the model."""
    model = random_family_model(family, seed, dtype)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


def family_document(model: Any, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Returns random tokens of the model's vocabulary."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, length)


@torch.no_grad()
def family_logits(model: Any, document: np.ndarray) -> np.ndarray:
    """Returns transformers' logits [tokens, vocab]."""
    return model(torch.from_numpy(document)[None]).logits[0].float().numpy()
