"""A token dataset on disk, memory-mapped: rows of packed pieces, or whole documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_longrope.data.index_file import TokenIndex, read_index, token_dtype
from megatron_longrope.data.manifest import DatasetManifest, file_sha256, read_manifest
from megatron_longrope.errors import InputError

_CHUNK = 1 << 24


def dataset_files(prefix: str | Path) -> tuple[Path, Path, Path]:
    """Returns the paths of the `.bin`, `.idx` and `.json` file of a dataset named `prefix`."""
    stem = Path(prefix)
    return (
        stem.with_name(stem.name + ".bin"),
        stem.with_name(stem.name + ".idx"),
        stem.with_name(stem.name + ".json"),
    )


class PackedDataset:
    """The rows of a token dataset in the files `prefix` + `.bin`, `.idx` and `.json`.

    A row is a Megatron "document", and a piece of it a Megatron "sequence". Kind "packed": a row
    holds pieces of several documents, at most `sequence_length` tokens together. Kind "documents":
    a row is one whole document.

    Opening checks index, manifest and the size of the `.bin` against each other, and against
    `vocab_size` and `tokenizer_sha256` where they are given. Raises InputError where they differ.

    >>> dataset.num_rows, dataset.row_lengths(0).tolist()
    (64, [16])
    """

    def __init__(
        self, prefix: str | Path, vocab_size: int | None = None, tokenizer_sha256: str | None = None
    ) -> None:
        self.prefix = Path(prefix)
        self.bin_path, self.idx_path, manifest_path = dataset_files(prefix)
        self.manifest: DatasetManifest = read_manifest(manifest_path)
        for path in (self.bin_path, self.idx_path):
            if not path.is_file():
                raise InputError("dataset", path, "no such file, though its manifest is there")
        self._index = read_index(self.idx_path)
        _check_sizes(self._index, self.manifest, self.bin_path)
        _check_tokenizer(self.manifest, self.prefix, vocab_size, tokenizer_sha256)
        self._starts = self._index.starts()
        self._tokens = np.memmap(self.bin_path, dtype=self._index.dtype, mode="r")

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self._index.num_documents

    def row(self, index: int) -> list[np.ndarray]:
        """Returns the pieces of row `index` in their order in the file, each [tokens] int64."""
        first, last = self._row_pieces(index)
        bounds = self._starts[first : last + 1]
        return [
            self._tokens[a:b].astype(np.int64) for a, b in zip(bounds[:-1], bounds[1:], strict=True)
        ]

    def row_lengths(self, index: int) -> np.ndarray:
        """Returns the lengths of the pieces of row `index`, [pieces] int32; reads no tokens."""
        first, last = self._row_pieces(index)
        return self._index.lengths[first:last]

    @property
    def num_documents(self) -> int:
        """Number of whole documents; raises InputError for packed rows."""
        self._need_documents()
        return self.num_rows

    @property
    def document_names(self) -> list[str]:
        """Names of the whole documents, in order; raises InputError for packed rows."""
        self._need_documents()
        return [record.name for record in self.manifest.documents]

    def document(self, index: int) -> np.ndarray:
        """Returns whole document `index`, [tokens] int64; raises InputError for packed rows."""
        self._need_documents()
        return self.row(index)[0]

    def verify(self) -> None:
        """Reads the whole dataset and checks it.

        Raises InputError where a checksum differs or a token is outside the vocabulary.
        """
        expected = {
            self.bin_path: self.manifest.bin_sha256,
            self.idx_path: self.manifest.idx_sha256,
        }
        for path, checksum in expected.items():
            found = file_sha256(path)
            if found != checksum:
                raise InputError(
                    "dataset",
                    path,
                    f"its sha256 is {found[:12]}…, its manifest says {checksum[:12]}…",
                )
        for start in range(0, len(self._tokens), _CHUNK):
            part = self._tokens[start : start + _CHUNK]
            if int(part.max()) >= self.manifest.vocab_size or int(part.min()) < 0:
                raise InputError(
                    "dataset", self.bin_path, f"a token is outside 0…{self.manifest.vocab_size - 1}"
                )

    def _row_pieces(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        starts = self._index.document_starts
        return int(starts[index]), int(starts[index + 1])

    def _need_documents(self) -> None:
        if self.manifest.kind != "documents":
            raise InputError(
                "dataset", self.prefix, "holds packed rows; this needs whole documents"
            )


def _check_sizes(index: TokenIndex, manifest: DatasetManifest, bin_path: Path) -> None:
    found, needed = bin_path.stat().st_size, index.num_tokens * index.dtype.itemsize
    if found != needed:
        state = "truncated" if found < needed else "too long"
        raise InputError(
            "dataset", bin_path, f"{state}: {found} bytes where its index needs {needed}"
        )
    if index.dtype != token_dtype(manifest.vocab_size):
        rule = (
            f"tokens are {index.dtype.name}, a vocabulary of {manifest.vocab_size} is stored "
            "otherwise"
        )
        raise InputError("dataset", bin_path, rule)
    counts = manifest.counts
    if (counts.rows, counts.pieces, counts.tokens) != (
        index.num_documents,
        len(index.lengths),
        index.num_tokens,
    ):
        raise InputError(
            "dataset", bin_path, "rows, pieces or tokens differ between its index and its manifest"
        )
    pieces_per_row = np.diff(index.document_starts)
    if int(pieces_per_row.min()) < 1:
        raise InputError("dataset", bin_path, "damaged: a row without pieces")
    if manifest.sequence_length is None:
        whole = bool(np.all(pieces_per_row == 1)) and len(manifest.documents) == counts.rows
        if not whole:
            raise InputError(
                "dataset", bin_path, "a dataset of whole documents has one sequence per document"
            )
    elif int(np.diff(index.starts()[index.document_starts]).max()) > manifest.sequence_length:
        raise InputError(
            "dataset",
            bin_path,
            f"a row is longer than the sequence length {manifest.sequence_length}",
        )


def _check_tokenizer(
    manifest: DatasetManifest, prefix: Path, vocab_size: int | None, tokenizer_sha256: str | None
) -> None:
    if vocab_size is not None and manifest.vocab_size > vocab_size:
        rule = f"its vocabulary has {manifest.vocab_size} entries, the model's {vocab_size}"
        raise InputError("dataset", prefix, rule)
    if tokenizer_sha256 is not None and manifest.tokenizer.sha256 != tokenizer_sha256:
        rule = (
            f"was made by tokenizer {manifest.tokenizer.name} ({manifest.tokenizer.sha256[:12]}…), "
        )
        raise InputError("dataset", prefix, rule + f"not by {tokenizer_sha256[:12]}…")
