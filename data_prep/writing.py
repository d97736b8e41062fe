"""Writes token datasets (`.bin`, `.idx` and `.json` files), whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.documents import TokenDocument
from data_prep.packing import PackingPlan, Piece, plan_packing
from megatron_longrope.atomic import json_text, replacing
from megatron_longrope.data.index_file import TokenIndex, token_dtype, write_index
from megatron_longrope.data.manifest import (
    DatasetCounts,
    DatasetManifest,
    DocumentRecord,
    TokenizerIdentity,
    file_sha256,
)
from megatron_longrope.data.packed import dataset_files
from megatron_longrope.errors import InputError


def write_packed(
    prefix: str | Path,
    documents: Sequence[TokenDocument],
    sequence_length: int,
    tokenizer: TokenizerIdentity,
    vocab_size: int,
    min_piece: int = 1,
    short_limit: int = 0,
) -> DatasetManifest:
    """Packs documents into rows, writes the dataset and returns its manifest.

    Raises InputError where nothing is left to write or a token is outside the vocabulary.

    >>> documents = [TokenDocument.generated(str(i), np.arange(1, 6)) for i in range(4)]
    >>> tokenizer = TokenizerIdentity(name="tiny", sha256="ab" * 32)
    >>> manifest = write_packed(folder / "packed", documents, 10, tokenizer, vocab_size=300)
    >>> manifest.counts.rows, manifest.counts.tokens
    (2, 20)

    Args:
        prefix: path of the dataset's files without their suffixes.
        documents: the documents to pack.
        sequence_length: most tokens of a row.
        tokenizer: name and checksum of the tokenizer that made the tokens.
        vocab_size: number of entries of the vocabulary.
        min_piece: pieces of documents with fewer tokens are left out.
        short_limit: pieces of at most so many tokens share no row with longer ones.
    """
    lengths = [len(document.tokens) for document in documents]
    plan = plan_packing(lengths, sequence_length, min_piece, short_limit)

    def tokens_of(piece: Piece) -> np.ndarray:
        return documents[piece.document].tokens[piece.start : piece.start + piece.length]

    rows = [[tokens_of(piece) for piece in row] for row in plan.rows]
    return _write(Path(prefix), "packed", rows, documents, tokenizer, vocab_size, plan, min_piece)


def write_documents(
    prefix: str | Path,
    documents: Sequence[TokenDocument],
    tokenizer: TokenizerIdentity,
    vocab_size: int,
) -> DatasetManifest:
    """Writes the dataset of whole documents, one row each, and returns its manifest.

    Raises InputError where there is no document or a token is outside the vocabulary.
    """
    rows = [[document.tokens] for document in documents]
    return _write(Path(prefix), "documents", rows, documents, tokenizer, vocab_size, None, 1)


def _write(
    prefix: Path,
    kind: Literal["packed", "documents"],
    rows: Sequence[Sequence[np.ndarray]],
    documents: Sequence[TokenDocument],
    tokenizer: TokenizerIdentity,
    vocab_size: int,
    plan: PackingPlan | None,
    min_piece: int,
) -> DatasetManifest:
    if not rows:
        raise InputError(
            "documents",
            len(documents),
            "nothing to write: no document, or none with a piece long enough",
        )
    _check_tokens(documents, vocab_size)
    bin_file, idx_file, json_file = dataset_files(prefix)
    index = _index(rows, token_dtype(vocab_size))
    try:
        # The contexts end in the opposite order: the manifest gets its name last.
        with (
            replacing(json_file) as partial_json,
            replacing(idx_file) as partial_idx,
            replacing(bin_file) as partial_bin,
        ):
            _write_tokens(partial_bin, rows, index.dtype)
            with partial_idx.open("wb") as stream:
                write_index(stream, index)
            manifest = DatasetManifest(
                kind=kind,
                tokenizer=tokenizer,
                vocab_size=vocab_size,
                sequence_length=plan.sequence_length if plan else None,
                min_piece=min_piece,
                counts=_counts(index, plan),
                documents=tuple(
                    DocumentRecord(name=d.name, sha256=d.sha256, tokens=len(d.tokens))
                    for d in documents
                ),
                bin_sha256=file_sha256(partial_bin),
                idx_sha256=file_sha256(partial_idx),
            )
            partial_json.write_text(json_text(manifest.model_dump()) + "\n", encoding="utf-8")
            # An older manifest is removed before, so that none ever describes other tokens.
            json_file.unlink(missing_ok=True)
    except OSError as error:
        raise InputError("dataset", prefix, f"cannot be written: {error.strerror}") from error
    return manifest


def _check_tokens(documents: Sequence[TokenDocument], vocab_size: int) -> None:
    for document in documents:
        if len(document.tokens) == 0:
            raise InputError("document", document.name, "has no tokens")
        if int(document.tokens.min()) < 0 or int(document.tokens.max()) >= vocab_size:
            raise InputError("document", document.name, f"has a token outside 0…{vocab_size - 1}")


def _index(rows: Sequence[Sequence[np.ndarray]], dtype: np.dtype) -> TokenIndex:
    lengths = np.array([len(piece) for row in rows for piece in row], dtype=np.int32)
    document_starts = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    return TokenIndex(dtype, lengths, document_starts)


def _write_tokens(path: Path, rows: Iterable[Iterable[np.ndarray]], dtype: np.dtype) -> None:
    with path.open("wb") as stream:
        for row in rows:
            for piece in row:
                stream.write(piece.astype(dtype).tobytes())


def _counts(index: TokenIndex, plan: PackingPlan | None) -> DatasetCounts:
    return DatasetCounts(
        rows=index.num_documents,
        pieces=len(index.lengths),
        tokens=index.num_tokens,
        unused=plan.unused if plan else 0,
        left_out=sum(piece.length for piece in plan.left_out) if plan else 0,
        left_out_pieces=len(plan.left_out) if plan else 0,
    )
