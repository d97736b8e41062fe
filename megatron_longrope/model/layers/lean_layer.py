"""A transformer layer that needs little more than hidden states and K/V in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_longrope.model.attention.packed import LongRopePackedParams

NUM_CHUNKS = 32
"""Number of chunks a share's tokens are cut into, where that leaves chunks large enough."""
SMALLEST_CHUNK = 512
"""Smallest chunk in tokens; smaller ones make matrix products slower and save nothing."""


class LeanLayer(TransformerLayer):
    """The layer of megatron-core, with an evaluation of its own that needs far less memory.

    In training, and wherever autograd is on, it is megatron-core's. In evaluation everything but
    attention works token by token, so it goes through in chunks of tokens. At any time there are:
    the hidden states (overwritten), the queries (overwritten by attention's output), this share's
    K/V, what attention needs for some of its heads, and one chunk of everything else.
    """

    def forward(
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the layer's output [tokens, 1, hidden_size] for this rank's share, and None.

        The second value is megatron-core's place for the context of cross-attention.
        """
        if self.training or torch.is_grad_enabled():
            result: tuple[Tensor, Tensor | None] = super().forward(hidden_states, *args, **kwargs)
            return result
        return self._evaluate(hidden_states, kwargs["packed_seq_params"]), None

    def _evaluate(self, hidden: Tensor, packed: LongRopePackedParams) -> Tensor:
        """Returns the layer's output, written over `hidden`.

        Under sequence parallelism `hidden` is one tensor-parallel rank's share of the sequence, and
        a projection gathers the same chunk from the shares of all ranks. Its result for chunk rows
        is [share 0's rows, share 1's rows, …]: each part goes to its place in its share.
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
        del places, place, parts, part  # or they would keep q, k and v alive behind our back
        out = attention.core_attention(query, key, value, None, packed_seq_params=packed)
        del query, key, value
        out = out.unflatten(0, (shares, -1))
        for rows in _chunks(hidden):
            # The row-parallel projection reduce-scatters: it returns this rank's rows only.
            attended, _ = attention.linear_proj(out[:, rows].flatten(0, 1).unsqueeze(1))
            chunk = hidden[rows].add_(attended)
            chunk.add_(self.mlp(self.pre_mlp_layernorm(chunk))[0])
        return hidden


def _place_for(part: Tensor, shares: int, tokens: int, by_head: bool) -> Tensor:
    """Returns an empty [shares, tokens, heads, head_dim] for a projection's results.

    `by_head` lays it out by head in memory, as K/V travel between context-parallel ranks.
    """
    heads, head_dim = part.shape[2:]
    if by_head:
        return part.new_empty(heads, shares, tokens, head_dim).permute(1, 2, 0, 3)
    return part.new_empty(shares, tokens, heads, head_dim)


def _chunks(hidden: Tensor) -> Iterator[slice]:
    size = max(SMALLEST_CHUNK, -(-hidden.shape[0] // NUM_CHUNKS))
    for start in range(0, hidden.shape[0], size):
        yield slice(start, min(start + size, hidden.shape[0]))
