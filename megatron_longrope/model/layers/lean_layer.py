"""A transformer layer that evaluates very long sequences in little more than its hidden states and
K/V."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_longrope.model.attention.packed import LongRopePackedParams

NUM_CHUNKS = 32
SMALLEST_CHUNK = 512
"""Tokens; below it matrix products get slower and nothing is gained."""


class LeanLayer(TransformerLayer):
    """megatron-core's layer in training. In evaluation all that is done token by token is done in
    chunks of them.

    What is alive at once is then: hidden states (overwritten), queries (overwritten by attention's
    output), this share's K/V, and of attention a part of the heads with what the exchange holds for
    it; else one chunk.
    """

    def forward(
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the layer's output [tokens, 1, hidden_size] and no context; tokens: this rank's
        share."""
        if self.training or torch.is_grad_enabled():
            result: tuple[Tensor, Tensor | None] = super().forward(hidden_states, *args, **kwargs)
            return result
        return self._evaluate(hidden_states, kwargs["packed_seq_params"]), None

    def _evaluate(self, hidden: Tensor, packed: LongRopePackedParams) -> Tensor:
        """Under sequence parallelism a projection gathers the same chunk of every tensor-parallel
        rank's share: its rows go back to where each rank's share stands in the sequence.
        """
        attention = self.self_attention
        shares = attention.pg_collection.tp.size() if self.config.sequence_parallel else 1
        places: list[Tensor] = []
        for rows in _chunks(hidden):
            parts = attention.get_query_key_value_tensors(self.input_layernorm(hidden[rows]), None)
            places = places or [
                _place_for(part, shares, hidden.shape[0], by_head)
                for part, by_head in zip(parts, (False, True, True), strict=True)
            ]
            for place, part in zip(places, parts, strict=True):
                place[:, rows] = part[:, 0].unflatten(0, (shares, -1))
        query, key, value = (place.flatten(0, 1) for place in places)
        del places, place, parts, part
        out = attention.core_attention(query, key, value, None, packed_seq_params=packed)
        del query, key, value
        out = out.unflatten(0, (shares, -1))
        for rows in _chunks(hidden):
            attended, _ = attention.linear_proj(out[:, rows].flatten(0, 1).unsqueeze(1))
            chunk = hidden[rows].add_(attended)
            chunk.add_(self.mlp(self.pre_mlp_layernorm(chunk))[0])
        return hidden


def _place_for(part: Tensor, shares: int, tokens: int, by_head: bool) -> Tensor:
    """Returns an empty [shares, tokens, heads, head_dim]; K/V lie by head in memory, as they are
    exchanged."""
    heads, head_dim = part.shape[2:]
    if by_head:
        return part.new_empty(heads, shares, tokens, head_dim).permute(1, 2, 0, 3)
    return part.new_empty(shares, tokens, heads, head_dim)


def _chunks(hidden: Tensor) -> Iterator[slice]:
    size = max(SMALLEST_CHUNK, -(-hidden.shape[0] // NUM_CHUNKS))
    for start in range(0, hidden.shape[0], size):
        yield slice(start, min(start + size, hidden.shape[0]))
