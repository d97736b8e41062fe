"""Context-parallel shares: every token once, each share an early and a late chunk, and the way
back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope.data import DocumentBatch
from megatron_longrope.data.zigzag import context_share, share_index, whole_from_shares
from megatron_longrope.errors import InputError
from tests.support.tiny_models import random_documents

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(lengths=lengths, size=st.integers(1, 5))
def test_shares_hold_every_token_once_and_make_the_whole_again(
    lengths: list[int], size: int
) -> None:
    batch = DocumentBatch.from_documents(random_documents(*lengths), 2 * size)
    shares = [context_share(batch, rank, size) for rank in range(size)]
    for name in ("tokens", "labels", "loss_mask", "positions"):
        whole = getattr(batch, name)
        assert torch.equal(
            whole_from_shares([getattr(s, name) for s in shares], batch.cu_seqlens), whole
        )
        stacked = [torch.stack([getattr(s, name)] * 2, dim=1) for s in shares]
        assert torch.equal(whole_from_shares(stacked, batch.cu_seqlens, dim=0)[:, 0], whole)
    for share in shares:
        assert share.context_size == size and share.longest == batch.longest
        assert torch.equal(share.cu_seqlens, batch.cu_seqlens)


def test_a_share_is_an_early_and_a_late_chunk_of_each_document() -> None:
    bounds = torch.tensor([0, 12, 24], dtype=torch.int32)
    assert share_index(bounds, 0, 3).tolist() == [0, 1, 10, 11, 12, 13, 22, 23]
    assert share_index(bounds, 2, 3).tolist() == [4, 5, 6, 7, 16, 17, 18, 19]


def test_labels_and_positions_are_those_of_the_uncut_document() -> None:
    batch = DocumentBatch.from_documents([np.arange(100, 108)], 4)
    share = context_share(batch, 0, 2)
    assert share.tokens.tolist() == [100, 101, 106, 107] and share.positions.tolist() == [
        0,
        1,
        6,
        7,
    ]
    assert share.labels.tolist() == [101, 102, 107, 0] and share.loss_mask.tolist() == [1, 1, 1, 0]


def test_a_document_that_cannot_be_cut_is_named() -> None:
    batch = DocumentBatch.from_documents(random_documents(10))
    with pytest.raises(
        InputError, match="document length=10: context_parallel=2 cuts documents in 4"
    ):
        context_share(batch, 0, 2)
