"""Random shapes of Llama models that exercise every option of the weight table."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from megatron_longrope.model import ModelShape

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Returns a random shape, with 1, 3 or 8 query heads for each key head.

    The vocabulary may need padding, and the embeddings may be tied.
    """
    kv_heads = draw(st.integers(1, 4))
    return ModelShape(
        num_layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(1, 12)) * 4,
        ffn_hidden_size=draw(st.integers(1, 16)) * 4,
        num_heads=kv_heads * draw(st.sampled_from([1, 3, 8])),
        num_kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 6)) * 4,
        vocab_size=draw(st.one_of(st.integers(2, 300), st.sampled_from([128, 256]))),
        context_length=64,
        tie_embeddings=draw(st.booleans()),
    )
