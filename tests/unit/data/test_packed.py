"""Datasets on disk: Megatron's own reader sees the same tokens, and damage of every kind is
refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from data_prep.documents import TokenDocument
from data_prep.writing import write_documents, write_packed
from megatron_longrope.data import PackedDataset, TokenizerIdentity
from megatron_longrope.errors import InputError

IDENTITY = TokenizerIdentity(name="tiny", sha256="ab" * 32)


def documents(
    lengths: tuple[int, ...] = (70, 3, 33, 12, 1, 64), vocab_size: int = 300
) -> list[TokenDocument]:
    random = np.random.default_rng(7)
    return [
        TokenDocument.generated(f"d{i}", random.integers(0, vocab_size, length))
        for i, length in enumerate(lengths)
    ]


@pytest.fixture()
def prefix(tmp_path: Path) -> Path:
    write_packed(tmp_path / "sub" / "set", documents(), 32, IDENTITY, 300)
    return tmp_path / "sub" / "set"


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(300, np.uint16), (65499, np.uint16), (65500, np.int32)]
)
def test_megatron_reads_the_same_rows(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    source = documents(vocab_size=vocab_size)
    write_packed(tmp_path / "set", source, 32, IDENTITY, vocab_size)
    ours, theirs = PackedDataset(tmp_path / "set"), IndexedDataset(str(tmp_path / "set"))
    assert theirs.index.dtype is dtype
    assert len(theirs.document_indices) - 1 == ours.num_rows
    for row in range(ours.num_rows):
        first, last = theirs.document_indices[row : row + 2]
        pieces = ours.row(row)
        assert len(pieces) == last - first
        assert ours.row_lengths(row).tolist() == [len(piece) for piece in pieces]
        for piece, sequence in zip(pieces, range(first, last), strict=True):
            assert piece.dtype == np.int64
            np.testing.assert_array_equal(piece, theirs[sequence])


def test_whole_documents_keep_names_and_tokens(tmp_path: Path) -> None:
    source = documents()
    manifest = write_documents(tmp_path / "set", source, IDENTITY, 300)
    dataset = PackedDataset(tmp_path / "set")
    theirs = IndexedDataset(str(tmp_path / "set"))  # kept: its arrays die with it
    dataset.verify()
    assert dataset.manifest == manifest
    assert dataset.document_names == [document.name for document in source]
    for i, document in enumerate(source):
        np.testing.assert_array_equal(dataset.document(i), document.tokens)
        np.testing.assert_array_equal(theirs[i], document.tokens)


def test_packed_rows_are_not_documents(prefix: Path) -> None:
    with pytest.raises(InputError, match="needs whole documents"):
        _ = PackedDataset(prefix).num_documents


def test_manifest_counts(prefix: Path) -> None:
    manifest = PackedDataset(prefix).manifest
    assert manifest.counts.tokens == 183 == sum(record.tokens for record in manifest.documents)
    assert manifest.counts.rows * 32 == manifest.counts.tokens + manifest.counts.unused
    assert manifest.sequence_length == 32 and manifest.kind == "packed"


def test_short_pieces_are_left_out_and_counted(tmp_path: Path) -> None:
    manifest = write_packed(tmp_path / "set", documents(), 32, IDENTITY, 300, min_piece=4)
    assert (manifest.counts.left_out_pieces, manifest.counts.left_out) == (3, 3 + 1 + 1)
    assert manifest.counts.tokens == 183 - 5
    assert (
        min(
            PackedDataset(tmp_path / "set").row_lengths(i).min()
            for i in range(manifest.counts.rows)
        )
        >= 4
    )


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _patch(offset: int, value: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset : offset + len(value)] = value
        path.write_bytes(bytes(content))

    return damage


POINTERS = 9 + 8 + 1 + 8 + 8


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".bin", _truncate, "truncated"),
        (".bin", lambda path: path.write_bytes(path.read_bytes() + b"xx"), "too long"),
        (".bin", Path.unlink, "no such file"),
        (".idx", _truncate, "truncated"),
        (".idx", lambda path: path.write_bytes(path.read_bytes()[:20]), "truncated"),
        (".idx", lambda path: path.write_bytes(b""), "magic"),
        (".idx", _patch(0, b"X"), "magic"),
        (".idx", _patch(9, struct.pack("<Q", 2)), "version 2"),
        (".idx", _patch(17, b"\x06"), "type code 6"),
        (".idx", _patch(17, b"\x04"), "pointers"),
        (".idx", _patch(18, struct.pack("<Q", 2**40)), "truncated"),
        (".idx", _patch(POINTERS, struct.pack("<i", -5)), "no tokens"),
        (".idx", _patch(POINTERS, struct.pack("<i", 31)), "pointers"),
        (".json", Path.unlink, "no such manifest"),
        (".json", _truncate, "not valid JSON"),
        (".json", lambda path: path.write_text("[]"), "not a JSON object"),
    ],
)
def test_damage_is_refused_on_opening(
    prefix: Path, suffix: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(prefix.with_name("set" + suffix))
    with pytest.raises(InputError, match=message):
        PackedDataset(prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "manifest version 2"),
        ({"kind": "documents"}, "sequence_length"),
        ({"sequence_length": 31}, "longer than the sequence length"),
        ({"vocab_size": 70000}, "stored otherwise"),
        ({"surprise": 1}, "unknown key"),
        ({"kind": "documents", "sequence_length": None}, "one sequence per document"),
        ({"counts": {"rows": 1, "pieces": 1, "tokens": 1}}, "differ"),
    ],
)
def test_a_wrong_manifest_is_refused(prefix: Path, change: dict[str, object], message: str) -> None:
    path = prefix.with_name("set.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        PackedDataset(prefix)


def test_verify_sees_one_changed_bit_and_tokens_outside_the_vocabulary(prefix: Path) -> None:
    path = prefix.with_name("set.bin")
    original = path.read_bytes()
    path.write_bytes(original[:10] + bytes([original[10] ^ 1]) + original[11:])
    with pytest.raises(InputError, match="sha256"):
        PackedDataset(prefix).verify()
    path.write_bytes(original)
    manifest = prefix.with_name("set.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "vocab_size": 200}))
    with pytest.raises(InputError, match="outside 0…199"):
        PackedDataset(prefix).verify()


def test_another_vocabulary_or_tokenizer_is_refused(prefix: Path) -> None:
    PackedDataset(prefix, vocab_size=300, tokenizer_sha256=IDENTITY.sha256)
    with pytest.raises(InputError, match="300 entries, the model's 256"):
        PackedDataset(prefix, vocab_size=256)
    with pytest.raises(InputError, match="was made by tokenizer tiny"):
        PackedDataset(prefix, tokenizer_sha256="cd" * 32)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside 0…99"):
        write_packed(tmp_path / "set", documents(), 32, IDENTITY, 100)
    with pytest.raises(InputError, match="nothing to write"):
        write_packed(tmp_path / "set", documents((3, 4)), 32, IDENTITY, 300, min_piece=5)
    with pytest.raises(InputError, match="has no tokens"):
        write_documents(tmp_path / "set", documents((3, 0)), IDENTITY, 300)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_packed(tmp_path / "file" / "set", documents(), 32, IDENTITY, 300)


def test_an_interrupted_rewrite_is_not_taken_for_the_old_set(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def killed_at_the_manifest(source: Path, target: Path) -> None:
        if Path(target).suffix == ".json":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed_at_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        write_packed(prefix, documents(), 16, IDENTITY, 300)
    with pytest.raises(InputError, match="no such manifest"):
        PackedDataset(prefix)
    assert not list(prefix.parent.glob("*.partial"))
