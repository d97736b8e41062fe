"""Megatron's `.idx` file, which says where each sequence lies in the `.bin` file beside it.

All numbers are little-endian: 9 magic bytes; version (u64), code of the token type (u8), number of
sequences (u64), number of entries of the document index (u64); length of each sequence in tokens
(i32); offset of each sequence in the `.bin` in bytes (i64); document index (i64), the number of the
first sequence of each document, and the number of sequences at the end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_longrope.errors import InputError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<QBQQ")  # version, dtype code, sequences, entries of the document index
DTYPE_CODES: dict[int, np.dtype] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
"""Megatron's codes of the integer types; its two float types never hold tokens."""


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the type that Megatron picks for tokens: uint16 below 65500 entries, else int32.

    >>> token_dtype(32_000).name, token_dtype(128_256).name
    ('uint16', 'int32')
    """
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


@dataclass(frozen=True)
class TokenIndex:
    """The contents of an `.idx` file."""

    dtype: np.dtype
    """Type of a token in the `.bin` file."""
    lengths: np.ndarray
    """Tokens of each sequence, [sequences]."""
    document_starts: np.ndarray
    """First sequence of each document, then the number of sequences, [documents + 1]."""

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.document_starts) - 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the `.bin` file."""
        return int(self.lengths.sum(dtype=np.int64))

    def starts(self) -> np.ndarray:
        """Returns [sequences + 1] int64: the first token of each sequence, then the total."""
        return np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))


def write_index(stream: BinaryIO, index: TokenIndex) -> None:
    """Writes the bytes of an `.idx` file, as Megatron does."""
    code = next(code for code, dtype in DTYPE_CODES.items() if dtype == index.dtype)
    stream.write(MAGIC)
    stream.write(HEADER.pack(VERSION, code, len(index.lengths), len(index.document_starts)))
    stream.write(np.asarray(index.lengths, dtype="<i4").tobytes())
    stream.write((index.starts()[:-1] * index.dtype.itemsize).astype("<i8").tobytes())
    stream.write(np.asarray(index.document_starts, dtype="<i8").tobytes())


def read_index(path: Path) -> TokenIndex:
    """Returns the index in `path`; raises InputError for a damaged file.

    Every length, offset and count is checked, so that nothing reads outside the `.bin` later.
    """
    content = path.read_bytes()
    first = len(MAGIC) + HEADER.size
    if content[: len(MAGIC)] != MAGIC:
        raise InputError("dataset", path, "not a Megatron index (wrong magic bytes)")
    if len(content) < first:
        raise InputError(
            "dataset", path, f"truncated: {len(content)} bytes, the header alone has {first}"
        )
    version, code, sequences, entries = HEADER.unpack_from(content, len(MAGIC))
    if version != VERSION:
        raise InputError(
            "dataset", path, f"index version {version}; this program reads version {VERSION}"
        )
    if code not in DTYPE_CODES:
        raise InputError(
            "dataset", path, f"token type code {code}; known are {', '.join(map(str, DTYPE_CODES))}"
        )
    expected = first + 12 * sequences + 8 * entries
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "too long"
        raise InputError(
            "dataset", path, f"{state}: {len(content)} bytes where its counts need {expected}"
        )
    lengths = np.frombuffer(content, "<i4", sequences, first)
    pointers = np.frombuffer(content, "<i8", sequences, first + 4 * sequences)
    document_starts = np.frombuffer(content, "<i8", entries, first + 12 * sequences)
    index = TokenIndex(DTYPE_CODES[code], lengths, document_starts)
    _check(index, pointers, path)
    return index


def _check(index: TokenIndex, pointers: np.ndarray, path: Path) -> None:
    starts = index.document_starts
    if len(index.lengths) and int(index.lengths.min()) < 1:
        raise InputError("dataset", path, "damaged: a sequence with no tokens")
    if not np.array_equal(pointers, index.starts()[:-1] * index.dtype.itemsize):
        raise InputError("dataset", path, "damaged: its pointers do not follow from its lengths")
    whole = (
        len(starts)
        and starts[0] == 0
        and starts[-1] == len(index.lengths)
        and bool(np.all(np.diff(starts) >= 0))
    )
    if not whole:
        raise InputError(
            "dataset", path, "damaged: its document index does not cover its sequences"
        )
