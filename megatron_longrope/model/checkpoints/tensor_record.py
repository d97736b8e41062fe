"""Finds where in a `torch.save` record a tensor's numbers lie, so that they can be read directly.

torch.load copies them twice. A record is a zip archive with a small pickle, data.pkl, to describe
the tensor, and its numbers in an entry that is not compressed. The pickle is read by an unpickler
that knows the few names in a plain tensor's pickle and imports nothing.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO, NamedTuple

import torch

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
}
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""A zip entry's own header: its signature, and the lengths of name and extra field after it."""
_MAX_PICKLE_BYTES = 1 << 16


class TensorPlace(NamedTuple):
    """Where the numbers of a tensor lie that fills its storage row by row."""

    dtype: torch.dtype
    sizes: tuple[int, ...]
    start: int
    """Place of the first number, in bytes from the beginning of the file."""


class _Storage(NamedTuple):
    """What a pickle says of a tensor's storage; `key` names the zip entry with the numbers."""

    dtype: torch.dtype
    key: str


def locate_tensor(file: BinaryIO, start: int, length: int) -> TensorPlace | None:
    """Returns the place of the tensor in the record of `length` bytes at `start` of a file.

    None: it is not a plain tensor, or the record is damaged; torch.load can tell which.
    """
    try:
        return _locate(file, start, length)
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        struct.error,
        LookupError,
        ValueError,
        TypeError,
        EOFError,
        AttributeError,
        NotImplementedError,
        RecursionError,
        MemoryError,
    ):
        return None


def _locate(file: BinaryIO, start: int, length: int) -> TensorPlace | None:
    with zipfile.ZipFile(_Window(file, start, length)) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        described = entries["data.pkl"]
        if described.compress_type != zipfile.ZIP_STORED or described.file_size > _MAX_PICKLE_BYTES:
            return None
        file.seek(_data_start(file, start, described))
        storage, offset, sizes, strides, *_ = _PlainTensor(
            io.BytesIO(file.read(described.file_size))
        ).load()
        data = entries[f"data/{storage.key}"]
        place = TensorPlace(storage.dtype, tuple(sizes), _data_start(file, start, data))
    # Anything else than one plain, uncompressed, row-major tensor of the right size is left alone.
    num_bytes = torch.Size(place.sizes).numel() * place.dtype.itemsize
    is_plain = offset == 0 and tuple(strides) == _row_major(place.sizes)
    fits = data.compress_type == zipfile.ZIP_STORED and data.file_size == num_bytes
    return place if is_plain and fits and place.start + num_bytes <= start + length else None


def _data_start(file: BinaryIO, start: int, entry: zipfile.ZipInfo) -> int:
    """Returns the byte in the file at which an entry's data begin.

    The archive's directory names only the entry's own header, whose length it does not say.
    """
    file.seek(start + entry.header_offset)
    name: int
    extra: int
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile
    return start + entry.header_offset + _LOCAL_HEADER.size + name + extra


def _row_major(sizes: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _rebuilt(*arguments: Any) -> tuple[Any, ...]:
    """Stands in for torch's function that builds a tensor; returns what it would be built from."""
    return arguments


class _PlainTensor(pickle.Unpickler):
    """Reads the pickle of a plain tensor as (storage, offset, sizes, strides, …)."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module_name == "torch" and global_name in _DTYPES:
            return _DTYPES[global_name]
        raise pickle.UnpicklingError(global_name)

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError
        return _Storage(dtype, str(key))


class _Window(io.RawIOBase):
    """The bytes of one record as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data
