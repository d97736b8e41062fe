"""Where in a `torch.save` record a tensor's numbers lie, so that they can be read straight to where
they are wanted.

torch.load copies them twice. A record is a zip archive whose one data entry is stored as it is; its
pickle is read here by an unpickler that knows the two things a plain tensor's pickle names and
imports nothing.
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
_MAX_PICKLE_BYTES = 1 << 16


class TensorPlace(NamedTuple):
    """A tensor that fills its storage row by row: `start` in bytes from the beginning of the
    file."""

    dtype: torch.dtype
    sizes: tuple[int, ...]
    start: int


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str


def locate_tensor(file: BinaryIO, start: int, length: int) -> TensorPlace | None:
    """Returns the place of the tensor in the record at `start` of `length` bytes; None where it is
    not a plain one.

    None says nothing about damage: torch.load is the one to ask then.
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
    num_bytes = torch.Size(place.sizes).numel() * place.dtype.itemsize
    is_plain = offset == 0 and tuple(strides) == _row_major(place.sizes)
    fits = data.compress_type == zipfile.ZIP_STORED and data.file_size == num_bytes
    return place if is_plain and fits and place.start + num_bytes <= start + length else None


def _data_start(file: BinaryIO, start: int, entry: zipfile.ZipInfo) -> int:
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
    return arguments


class _PlainTensor(pickle.Unpickler):
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
