"""Repeats in numpy float64 what llama.cpp computes for a GGUF file of architecture `llama`.

The file is read by the `gguf` package. The computation follows llama.cpp's sources
(src/models/llama.cpp, get_rope_factors in src/llama-model.cpp, ggml's rope kernel): rows of q and k
lie in adjacent pairs, the factor tensor divides the angle, attn_factor multiplies cos and sin, and
the long tensor is used where the context allocated to a sequence exceeds original_context_length,
however long the prompt is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize


class LlamaCpp:
    """A GGUF file opened for a context of `context` tokens."""

    def __init__(self, path: Path, context: int) -> None:
        reader = GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type)
            .reshape([int(size) for size in reversed(tensor.shape)])
            .astype(np.float64)
            for tensor in reader.tensors
        }
        window = self._key("rope.scaling.original_context_length", self._key("context_length"))
        self.factors = self._tensors.get(
            f"rope_factors_{'long' if context > window else 'short'}.weight"
        )
        if self._key("rope.scaling.type", "linear") != "longrope":
            self.factors = None

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the logits of every token, [tokens, vocabulary]."""
        x = self._tensors["token_embd.weight"][tokens]
        for layer in range(self._key("block_count")):
            x = x + self._attention(self._norm(x, f"blk.{layer}.attn_norm"), f"blk.{layer}.")
            inner = self._norm(x, f"blk.{layer}.ffn_norm")
            gate, up = (
                inner @ self._tensors[f"blk.{layer}.ffn_{part}.weight"].T for part in ("gate", "up")
            )
            x = (
                x
                + (gate / (1 + np.exp(-gate)) * up)
                @ self._tensors[f"blk.{layer}.ffn_down.weight"].T
            )
        output = self._tensors.get("output.weight", self._tensors["token_embd.weight"])
        return self._norm(x, "output_norm") @ output.T

    def _attention(self, x: np.ndarray, layer: str) -> np.ndarray:
        dim = self._key("rope.dimension_count")
        q, k, v = (
            (x @ self._tensors[f"{layer}attn_{part}.weight"].T).reshape(len(x), -1, dim)
            for part in "qkv"
        )
        q, k = self._rotated(q), self._rotated(k)
        group = q.shape[1] // k.shape[1]
        k, v = (part.repeat(group, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores[:, ~np.tri(len(x), dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)
        return mixed.reshape(len(x), -1) @ self._tensors[f"{layer}attn_output.weight"].T

    def _rotated(self, x: np.ndarray) -> np.ndarray:
        pairs = np.arange(x.shape[-1] // 2)
        angles = np.outer(
            np.arange(len(x)), self._key("rope.freq_base", 10000.0) ** (-2 * pairs / x.shape[-1])
        )
        if self.factors is not None:
            angles = angles / self.factors
        attention_factor = self._key("rope.scaling.attn_factor", 1.0)
        cos, sin = (np.expand_dims(f(angles), 1) * attention_factor for f in (np.cos, np.sin))
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        epsilon = self._key("attention.layer_norm_rms_epsilon")
        return (
            x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * self._tensors[f"{name}.weight"]
        )

    def _key(self, name: str, default: Any = None) -> Any:
        field = self._fields.get(f"llama.{name}")
        return default if field is None else field.contents()
