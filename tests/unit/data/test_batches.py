"""Batches: labels never cross a document, and the order of rows depends on nothing but seed and
step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import TokenDocument
from data_prep.writing import write_packed
from megatron_longrope.data import DocumentBatch, PackedBatches, PackedDataset, TokenizerIdentity
from megatron_longrope.errors import InputError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, multiple=st.sampled_from([1, 2, 8, 12]))
def test_every_document_keeps_its_tokens_labels_and_positions(
    lengths: list[int], multiple: int
) -> None:
    pieces = [np.arange(length) + 100 * i + 1 for i, length in enumerate(lengths)]
    batch = DocumentBatch.from_documents(pieces, multiple)
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(batch.tokens) and batch.num_documents == len(pieces)
    for piece, start, end in zip(pieces, bounds[:-1], bounds[1:], strict=True):
        assert (end - start) % multiple == 0 and end - start - len(piece) < multiple
        assert batch.tokens[start:end].tolist() == piece.tolist() + [0] * (end - start - len(piece))
        assert batch.positions[start:end].tolist() == list(range(end - start))
        counted = batch.loss_mask[start:end].bool()
        assert counted.tolist() == [True] * (len(piece) - 1) + [False] * (
            end - start - len(piece) + 1
        )
        assert batch.labels[start:end][counted].tolist() == piece[1:].tolist()
        assert not batch.labels[start:end][~counted].any()
    assert batch.max_length == max(b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True))


def test_tensor_types() -> None:
    batch = DocumentBatch.from_documents([np.array([5, 6, 7], dtype=np.uint16)]).to("cpu")
    assert (batch.tokens.dtype, batch.labels.dtype, batch.positions.dtype) == (torch.int64,) * 3
    assert (batch.loss_mask.dtype, batch.cu_seqlens.dtype) == (torch.float32, torch.int32)


@pytest.mark.parametrize("pieces", [[], [np.zeros(0, dtype=np.int64)]])
def test_nothing_makes_no_batch(pieces: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="one document or more"):
        DocumentBatch.from_documents(pieces)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """13 rows of 16 tokens; the first token of a row tells which it is."""
    documents = [TokenDocument.generated(f"d{i}", np.full(16, i)) for i in range(13)]
    prefix = tmp_path_factory.mktemp("data") / "set"
    write_packed(prefix, documents, 16, TokenizerIdentity(name="tiny", sha256="ab" * 32), 300)
    return PackedDataset(prefix)


def _rows(batches: list[DocumentBatch]) -> list[int]:
    return [int(batch.tokens[start]) for batch in batches for start in batch.cu_seqlens[:-1]]


@pytest.mark.parametrize(("size", "micro"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_all_ranks_together_see_the_same_rows_for_any_layout(
    dataset: PackedDataset, size: int, micro: int
) -> None:
    reference = PackedBatches(dataset, 4, seed=3)
    ranks = [
        PackedBatches(dataset, 4, rank, size, seed=3, micro_batch_size=micro)
        for rank in range(size)
    ]
    for _ in range(10):
        parts = [next(rank) for rank in ranks]
        assert all(len(part) == 4 // size // micro for part in parts)
        assert sorted(row for part in parts for row in _rows(part)) == sorted(
            _rows(next(reference))
        )


def test_each_epoch_has_every_row_once_in_another_order(dataset: PackedDataset) -> None:
    batches = PackedBatches(dataset, 1, seed=5)
    epochs = [[row for _ in range(13) for row in _rows(next(batches))] for _ in range(3)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert batches.epoch == 3
    other = PackedBatches(dataset, 1, seed=6)
    assert epochs[0] != [row for _ in range(13) for row in _rows(next(other))]


@settings(deadline=None, max_examples=60)
@given(before=st.integers(0, 20))
def test_a_restored_iterator_goes_on_exactly(dataset: PackedDataset, before: int) -> None:
    batches = PackedBatches(dataset, 3, seed=9)
    for _ in range(before):
        next(batches)
    restored = PackedBatches(dataset, 3, seed=9)
    restored.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    assert [_rows(next(batches)) for _ in range(7)] == [_rows(next(restored)) for _ in range(7)]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """26 rows of 16 tokens, every other one a single document, the others of four."""
    documents = [
        TokenDocument.generated(f"d{row}.{part}", np.full(16 // parts, row))
        for row in range(26)
        for parts in ([1, 4][row % 2],)
        for part in range(parts)
    ]
    prefix = tmp_path_factory.mktemp("data") / "uneven"
    write_packed(prefix, documents, 16, TokenizerIdentity(name="tiny", sha256="ab" * 32), 300)
    return PackedDataset(prefix)


def _longest(dataset: PackedDataset, row: int) -> int:
    return max(len(piece) for piece in dataset.row(row))


@pytest.mark.parametrize("global_batch_size", [2, 4])
def test_balanced_steps_hold_rows_alike_and_each_epoch_still_has_every_row_once(
    uneven: PackedDataset, global_batch_size: int
) -> None:
    drawn = PackedBatches(uneven, global_batch_size, seed=4)
    balanced = PackedBatches(uneven, global_batch_size, seed=4, balanced_steps=6)
    steps = [balanced.step_rows(step) for step in range(2 * 26 // global_batch_size)]
    flat = [row for step in steps for row in step]
    assert sorted(flat[:26]) == sorted(flat[26:]) == list(range(26))
    window = 6 * global_batch_size  # dealt out among themselves
    assert sorted(flat[:window]) == sorted(
        row for step in range(6) for row in drawn.step_rows(step)
    )
    mixed = [len({_longest(uneven, row) for row in step}) > 1 for step in steps]
    assert (
        sum(mixed)
        <= 2 * (26 // window + 1)
        < sum(
            len({_longest(uneven, row) for row in drawn.step_rows(step)}) > 1
            for step in range(len(steps))
        )
    )
    kinds = [_longest(uneven, step[0]) for step in steps[:6]]
    assert kinds != sorted(kinds)  # cheap steps do not all come first
    halves = [
        PackedBatches(uneven, global_batch_size, rank, 2, seed=4, balanced_steps=6)
        for rank in range(2)
    ]
    seen = [
        row
        for half in halves
        for batch in next(half)
        for row in batch.tokens[batch.cu_seqlens[:-1]].tolist()
    ]
    assert set(seen) == {int(piece[0]) for row in steps[0] for piece in uneven.row(row)}
    with pytest.raises(InputError, match="balanced_steps"):
        drawn.load_state_dict(balanced.state_dict())
    before_it_was_saved = {
        name: value for name, value in drawn.state_dict().items() if name != "balanced_steps"
    }
    drawn.load_state_dict(before_it_was_saved)
    with pytest.raises(InputError, match="balanced_steps"):
        balanced.load_state_dict(before_it_was_saved)


def test_a_position_of_other_data_or_settings_is_refused(
    dataset: PackedDataset, tmp_path: Path
) -> None:
    state = PackedBatches(dataset, 4, seed=1).state_dict()
    with pytest.raises(InputError, match="saved with 1"):
        PackedBatches(dataset, 4, seed=2).load_state_dict(state)
    with pytest.raises(InputError, match="global_batch_size=2"):
        PackedBatches(dataset, 2, seed=1).load_state_dict(state)
    with pytest.raises(InputError, match="dataset_sha256"):
        PackedBatches(dataset, 4, seed=1).load_state_dict({**state, "dataset_sha256": "0"})


@pytest.mark.parametrize(
    "settings",
    [
        {"global_batch_size": 3, "data_parallel_size": 2},
        {"global_batch_size": 4, "data_parallel_size": 2, "micro_batch_size": 4},
        {"global_batch_size": 0},
        {"global_batch_size": 2, "data_parallel_rank": 2, "data_parallel_size": 2},
        {"global_batch_size": 2, "seed": -1},
        {"global_batch_size": 2, "balanced_steps": 0},
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    dataset: PackedDataset, settings: dict[str, int]
) -> None:
    with pytest.raises(InputError):
        PackedBatches(dataset, **settings)


def test_filling_up_keeps_every_document_divisible() -> None:
    batch = DocumentBatch.from_documents([np.arange(5)], pad_to_multiple=4, total=18)
    assert batch.cu_seqlens.tolist() == [0, 8, 20] and batch.longest == 5
