"""K/V of a share cut for their way to other ranks: every token once, each piece a part of early and
late chunks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope.model.attention.context_runs import cut_keys, cut_runs, runs_of


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    size=st.integers(2, 4),
    num_pieces=st.integers(2, 7),
)
def test_pieces_hold_every_token_once_in_its_document_and_chunk(
    chunks: list[int], size: int, num_pieces: int
) -> None:
    runs = runs_of([2 * size * chunk for chunk in chunks], size)
    labels = [
        (document, half, place)
        for document, n in enumerate(chunks)
        for half in (0, 1)
        for place in range(n)
    ]
    keys = torch.tensor(labels).unsqueeze(0).repeat(2, 1, 1)  # [kv_heads, tokens, head_dim]
    pieces, cut = list(cut_keys((keys, -keys), runs, num_pieces)), cut_runs(runs, num_pieces)
    assert len(pieces) == len(cut) == num_pieces
    seen = []
    for (key, value), places in zip(pieces, cut, strict=True):
        assert key.is_contiguous() and torch.equal(value, -key) and torch.equal(key[0], key[1])
        assert key.shape[1] == sum(run.length * run.num_documents for run in places)
        first = 0
        for run, of_piece in zip(runs, places, strict=True):
            last = first + run.num_documents
            if of_piece.length:
                found = of_piece.of(key.transpose(0, 1))[:, 0]  # [documents, length, label]
                assert found[..., 0].unique().tolist() == list(range(first, last))
                early, late = found.chunk(2, dim=1)
                assert (early[..., 1] == 0).all() and (late[..., 1] == 1).all()
                assert torch.equal(early[..., 2], late[..., 2])
            first = last
        seen += [tuple(label) for label in key[0].tolist()]
    assert sorted(seen) == labels


def test_one_piece_is_what_was_there_uncopied() -> None:
    keys = torch.arange(12.0).reshape(1, 12, 1)
    runs = runs_of([24], 2)
    ((key, value),) = cut_keys((keys, keys), runs, 1)
    assert key is keys and value is keys and cut_runs(runs, 1) == [runs]


def test_a_document_shorter_than_the_pieces_leaves_some_of_them_out() -> None:
    runs = runs_of([64, 4], 2)  # shares of 32 and 2 tokens
    assert [[run.length for run in piece] for piece in cut_runs(runs, 4)] == [
        [8, 0],
        [8, 0],
        [8, 0],
        [8, 2],
    ]
