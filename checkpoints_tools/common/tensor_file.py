"""safetensors files by byte ranges: rows in and out without holding a tensor, let alone a file.

The format is the one of the `safetensors` package, whose reader checks every header before this
module looks at it. The package itself maps files into memory, and what was read stays counted as
the process's; a range read does not.
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
    """Where a tensor lies in its file: `start` in bytes from the file's beginning, rows one after
    another."""

    dtype: torch.dtype
    sizes: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.sizes[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Returns what a safetensors file holds; raises InputError for one that is damaged or cut
    short."""
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
    """Returns the first bytes of a safetensors file of these tensors, in this order, and where each
    goes."""
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
    raw += b" " * (-len(raw) % _ALIGNMENT)
    places = {
        name: StoredTensor(dtype, sizes, 8 + len(raw) + header[name]["data_offsets"][0])
        for name, (dtype, sizes) in tensors.items()
    }
    return len(raw).to_bytes(8, "little") + raw, places


def read_into(descriptor: int, start: int, target: Tensor, file: Path) -> None:
    """Fills a contiguous tensor with the bytes from `start` on; raises InputError where the file
    ends before."""
    view = _bytes_of(target)
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], start + done)
        if count == 0:
            raise InputError("model", file, "damaged or cut short: it ended while it was read")
        done += count


def write_from(descriptor: int, start: int, source: Tensor) -> None:
    """Writes a contiguous tensor's bytes at `start`."""
    view = _bytes_of(source)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], start + done)


def begin_writeback(descriptor: int, start: int, length: int) -> None:
    """Has the system bring written bytes to disk from now on, while more are made, instead of all
    at the fsync.

    Advice that changes no byte; on Linux it also spares the page cache what nobody reads soon.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the memory of a contiguous tensor."""
    raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def is_finite(tensor: Tensor) -> bool:
    """Returns whether no number is NaN or infinite, at the speed of a sum: those two survive every
    addition."""
    if not tensor.is_floating_point():
        return True
    flat = tensor.reshape(-1)
    whole = flat.numel() // _SUM_WIDTH * _SUM_WIDTH
    rows, rest = flat[:whole].view(-1, _SUM_WIDTH), flat[whole:]
    suspicious = ~torch.isfinite(
        rows.sum(dim=1)
    )  # a sum may overflow without one of its numbers being infinite
    return bool(torch.isfinite(rest).all()) and bool(torch.isfinite(rows[suspicious]).all())
