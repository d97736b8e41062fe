"""Reads and writes rows of safetensors files by byte ranges, without holding a whole tensor.

The reader of the `safetensors` package checks every header before this module looks at it. Rows are
not read with the package, since it maps files into memory: what was read would count as memory of
this process until the file is closed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_longrope.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
_SUM_WIDTH = 1024


@dataclass(frozen=True)
class StoredTensor:
    """Place of a tensor in its file, where its rows lie one after another."""

    dtype: torch.dtype
    sizes: tuple[int, ...]
    start: int
    """Number of bytes before the tensor in its file."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, a row being all numbers of one index of the first dim."""
        return math.prod(self.sizes[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.sizes) * self.dtype.itemsize


def read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """Returns the place of every tensor in a safetensors file, by name.

    Raises InputError for a file that is damaged or cut short.
    """
    try:
        with safe_open(file, "pt"):  # checks sizes, ranges, overlaps and the file's length
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError, RuntimeError, RecursionError) as error:
        raise InputError(
            "model", file, f"damaged or cut short: {' '.join(str(error).split())}"
        ) from error
    header.pop("__metadata__", None)
    return {name: _stored(name, entry, 8 + length, file) for name, entry in header.items()}


def _stored(name: str, entry: Mapping[str, Any], data_start: int, file: Path) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise InputError(
            "model", file, f"{name} is stored as {entry['dtype']}, which is not supported"
        )
    start, stop = entry["data_offsets"]
    stored = StoredTensor(DTYPES[entry["dtype"]], tuple(entry["shape"]), data_start + start)
    if stop - start != stored.num_bytes or data_start + stop > file.stat().st_size:
        raise InputError("model", file, f"damaged: {name} does not fill its place")
    return stored


def plan_file(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> tuple[bytes, dict[str, StoredTensor]]:
    """Returns the head of a safetensors file (the bytes before the data) and each tensor's place.

    `tensors` gives dtype and sizes by name, in the order the file is to have.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, sizes) in tensors.items():
        stop = start + math.prod(sizes) * dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(sizes),
            "data_offsets": [start, stop],
        }
        start = stop
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)  # the format asks for data aligned to 8 bytes
    places = {
        name: StoredTensor(dtype, sizes, 8 + len(raw) + header[name]["data_offsets"][0])
        for name, (dtype, sizes) in tensors.items()
    }
    return len(raw).to_bytes(8, "little") + raw, places


def read_into(descriptor: int, start: int, target: Tensor, file: Path) -> None:
    """Fills a contiguous tensor with the file's bytes from `start` on.

    Raises InputError, which names `file`, where the file ends before the tensor is full.
    """
    view = _bytes_of(target)
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], start + done)
        if count == 0:
            raise InputError("model", file, "damaged or cut short: it ended while it was read")
        done += count


def write_from(descriptor: int, start: int, source: Tensor) -> None:
    """Writes the bytes of a contiguous tensor to the file at byte `start`."""
    view = _bytes_of(source)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], start + done)


def begin_writeback(descriptor: int, start: int, length: int) -> None:
    """Asks the system to write these bytes to disk now, so that the final fsync has little left.

    This is advice that changes no byte. On Linux it also drops them from the page cache, where
    nobody would read them soon.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns a view of the memory of a contiguous tensor."""
    raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def is_finite(tensor: Tensor) -> bool:
    """Returns whether no number of a tensor is NaN or infinite.

    NaN and infinity survive every addition, so that a row with a finite sum holds neither: summing
    rows costs far less than testing each number. A sum may overflow though no number is infinite;
    rows with such sums are tested number by number.
    """
    if not tensor.is_floating_point():
        return True
    flat = tensor.reshape(-1)
    whole = flat.numel() // _SUM_WIDTH * _SUM_WIDTH
    rows, rest = flat[:whole].view(-1, _SUM_WIDTH), flat[whole:]
    suspicious = ~torch.isfinite(rows.sum(dim=1))
    return bool(torch.isfinite(rest).all()) and bool(torch.isfinite(rows[suspicious]).all())
