"""Reads the header of a GGUF file and checks every count and offset before using it.

Layout (GGUF 2 and 3, little-endian): magic, version, number of tensors, number of keys; the keys
with typed values; for each tensor its name, sizes (the fastest-changing dim first), block type and
offset; then the data, aligned. The reader of the `gguf` package trusts the counts. This one never
allocates more than the file could hold, nor more than the limits below.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_longrope.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_HEADER_BYTES = 256 << 20
_MAX_ITEMS = 4 << 20
"""Limit on array entries, keys and tensors of a header: four times what the largest models have."""
_MAX_DIMS = 4
_MAX_VALUES = 1 << 40
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<B",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Place, sizes and block type of one tensor in a GGUF file."""

    name: str
    sizes: tuple[int, ...]
    """Sizes in Hugging Face's order, the fastest-changing dim last."""
    kind: int
    """ggml's number of the block type, such as 0 for float32."""
    offset: int
    """First byte of the data."""
    num_bytes: int
    """Length of the data in bytes."""

    @property
    def num_values(self) -> int:
        """Number of values, whatever blocks they are stored in."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class GgufHeader:
    """Keys and tensors of a GGUF file, in the file's order; offsets count from the file's start."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Returns whether `path` is a file that begins with GGUF's magic bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read_gguf_header(path: Path | str, block_sizes: Mapping[int, tuple[int, int]]) -> GgufHeader:
    """Returns the checked header of a GGUF file.

    `block_sizes` gives (values, bytes) of a block for each block type. float32 values of keys are
    returned as the shortest decimal that rounds to them. Raises InputError for a file that is cut
    short, whose counts or offsets are impossible, or that holds a block type not in `block_sizes`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Reading(path, file).header(block_sizes)
    except OSError as error:
        raise InputError("gguf", path, f"cannot be read: {error.strerror}") from error


class _Reading:
    """One pass over a header, with what may still be read: bytes and items left."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = path.stat().st_size
        self._left = min(self._size, _MAX_HEADER_BYTES)
        self._items = _MAX_ITEMS

    def header(self, block_sizes: Mapping[int, tuple[int, int]]) -> GgufHeader:
        """Reads the file from its start and returns the checked header."""
        if self._size < 4 or self._bytes(4) != MAGIC:
            raise self._wrong("not a GGUF file")
        version = self._scalar(4)
        if version not in VERSIONS:
            raise self._wrong(
                f"GGUF version {version}; little-endian files of versions 2 and 3 are read"
            )
        num_tensors, num_keys = self._count("tensors"), self._count("keys")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string("a key")
            if key in metadata:
                raise self._wrong(f"the key {_shown(key)} is there twice")
            metadata[key] = self._value(self._scalar(4), key)
        alignment = self._alignment(metadata)
        found = [self._tensor(block_sizes) for _ in range(num_tensors)]
        data = -(-self._file.tell() // alignment) * alignment  # the next multiple of it
        return GgufHeader(self._path, metadata, self._placed(found, data, alignment))

    def _tensor(self, block_sizes: Mapping[int, tuple[int, int]]) -> GgufTensor:
        name = self._string("a tensor's name")
        num_dims = self._scalar(4)
        if not 1 <= num_dims <= _MAX_DIMS:
            raise self._wrong(f"{_shown(name)} has {num_dims} dimensions")
        sizes = tuple(reversed([self._scalar(10) for _ in range(num_dims)]))
        kind, offset = self._scalar(4), self._scalar(10)
        if min(sizes) < 1 or math.prod(sizes) > _MAX_VALUES:
            raise self._wrong(f"{_shown(name)} cannot have sizes {list(sizes)}")
        if kind not in block_sizes:
            raise self._wrong(
                f"{_shown(name)} is stored as ggml's type {kind}, which is not known here"
            )
        values, num_bytes = block_sizes[kind]
        if sizes[-1] % values:
            raise self._wrong(
                f"{_shown(name)}: rows of {sizes[-1]} do not divide into blocks of {values}"
            )
        return GgufTensor(name, sizes, kind, offset, math.prod(sizes) // values * num_bytes)

    def _placed(self, found: list[GgufTensor], data: int, alignment: int) -> dict[str, GgufTensor]:
        """Returns the tensors by name with offsets in the file; raises where two overlap."""
        tensors: dict[str, GgufTensor] = {}
        end = 0
        for tensor in sorted(found, key=lambda tensor: tensor.offset):
            if tensor.name in tensors:
                raise self._wrong(f"the tensor {_shown(tensor.name)} is there twice")
            if tensor.offset % alignment or tensor.offset < end:
                raise self._wrong(
                    f"{_shown(tensor.name)} is not aligned, or lies over another tensor"
                )
            end = tensor.offset + tensor.num_bytes
            if data + end > self._size:
                raise self._wrong(
                    f"cut short: {_shown(tensor.name)} ends at byte {data + end} of {self._size}"
                )
            start = data + tensor.offset
            tensors[tensor.name] = GgufTensor(
                tensor.name, tensor.sizes, tensor.kind, start, tensor.num_bytes
            )
        return {tensor.name: tensors[tensor.name] for tensor in found}

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get(ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or not 0 < alignment <= 1 << 20
            or alignment & (alignment - 1)
        ):
            raise self._wrong(
                f"{ALIGNMENT_KEY} is {_shown(alignment)}, which is no power of two up to 2^20"
            )
        return alignment

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY:
            return self._scalar(kind, key)
        inner, count = self._scalar(4), self._count(key)
        if inner == _STRING:
            return [self._string(key) for _ in range(count)]
        if inner not in _SCALARS:
            raise self._wrong(f"{_shown(key)} is an array of type {inner}, which is not known here")
        return self._array(inner, count)

    def _array(self, kind: int, count: int) -> list[Any]:
        values = np.frombuffer(self._bytes(count * struct.calcsize(_SCALARS[kind])), _SCALARS[kind])
        if kind == _FLOAT32:
            return [shortest(value) for value in values]
        return [bool(value) for value in values] if kind == _BOOL else values.tolist()

    def _scalar(self, kind: int, key: str = "") -> Any:
        if kind not in _SCALARS:
            raise self._wrong(f"{_shown(key)} has type {kind}, which is not known here")
        (value,) = struct.unpack(_SCALARS[kind], self._bytes(struct.calcsize(_SCALARS[kind])))
        if kind == _FLOAT32:
            return shortest(np.float32(value))
        return bool(value) if kind == _BOOL else value

    def _string(self, what: str) -> str:
        length = self._scalar(10)
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(f"damaged: {_shown(what)} is no UTF-8") from error

    def _count(self, what: str) -> int:
        """Returns the number of items that follow, after taking it off the header's limit."""
        count: int = self._scalar(10)
        self._items -= count
        if self._items < 0:
            raise self._wrong(
                f"says it holds {count} {_shown(what)}: a header has at most {_MAX_ITEMS} entries "
                "in all"
            )
        return count

    def _bytes(self, length: int) -> bytes:
        self._left -= length
        read = self._file.read(length) if self._left >= 0 else b""
        if len(read) < length:
            raise self._wrong(
                f"cut short or damaged: its header wants {length} bytes more than there are"
            )
        return read

    def _wrong(self, rule: str) -> InputError:
        return InputError("gguf", self._path, rule)


def shortest(value: np.float32) -> float:
    """Returns the shortest decimal that rounds to a float32.

    >>> float(np.float32(1.37)), shortest(np.float32(1.37))
    (1.3700000047683716, 1.37)
    """
    return float(str(value))


def _shown(value: object) -> str:
    """Returns a value from a file as a short text on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
