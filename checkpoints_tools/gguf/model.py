"""Presents a GGUF file as a Hugging Face folder, to be imported, loaded or compared like one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checkpoints_tools.gguf.config import hf_config
from checkpoints_tools.gguf.header import GgufHeader, GgufTensor, read_gguf_header, shortest
from checkpoints_tools.gguf.names import (
    ROPE_TENSORS,
    block_sizes,
    hf_names,
    rotated_heads,
    unpermuted,
)
from checkpoints_tools.gguf.tokenizer import tokenizer_from_gguf
from checkpoints_tools.hf.folder import CONFIG_FILE, HfFolder
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape

_F32, _F16, _BF16 = 0, 1, 30
_HALVES = {_F16: torch.float16, _BF16: torch.bfloat16}
_CHUNK_VALUES = 8 << 20
_MAX_ROPE_FACTORS = 1 << 16


@dataclass(frozen=True)
class GgufModel(HfFolder):
    """A Hugging Face folder whose weights come from a GGUF file.

    `path` is a folder with config.json and tokenizer files made from the file's keys. All weights
    have one dtype: bfloat16 or float16 where all matrices are stored in it and every vector fits
    into it without loss, else float32, which holds every value of every block type exactly.
    """

    source: GgufHeader
    """Header of the GGUF file."""
    names: dict[str, str]
    """Name in llama.cpp of each Hugging Face weight."""
    shape: ModelShape
    dtype: torch.dtype

    def tensor(self, name: str) -> Tensor:
        """Returns a weight in HF's order of rows; raises InputError where it is damaged."""
        tensor = self._rows(name, 0, None)
        if not bool(torch.isfinite(tensor).all()):
            raise InputError("model", self.source.path, f"{name} holds NaN or infinity")
        return tensor

    def header(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Returns sizes and dtype of a weight without reading it."""
        return self.source.tensors[self.names[name]].sizes, self.dtype

    def read_rows(self, name: str, first: int, target: Tensor) -> None:
        """Fills `target` with a weight's rows from `first` on, in HF's order, finite or not."""
        target.copy_(self._rows(name, first, first + target.shape[0]))

    def fingerprint(self) -> list[list[object]]:
        """Returns the file's name, size and time of change, to notice other contents."""
        stat = self.source.path.stat()
        return [[str(self.source.path.resolve()), stat.st_size, stat.st_mtime_ns]]

    def check_weights(
        self, expected: Mapping[str, tuple[int, ...]], *, tied_to: Mapping[str, str]
    ) -> torch.dtype:
        """Does what `HfFolder.check_weights` does, with errors that name the GGUF file."""
        try:
            return super().check_weights(expected, tied_to=tied_to)
        except InputError as error:
            raise InputError(error.field, self.source.path, error.rule) from error

    def _rows(self, name: str, start: int, stop: int | None) -> Tensor:
        """Returns the rows from `start` to `stop` in HF's order.

        GGUF files order the rows of a q or k head differently, so the whole heads that hold these
        rows are read.
        """
        stored = self.source.tensors[self.names[name]]
        stop = stored.sizes[0] if stop is None else min(stop, stored.sizes[0])
        heads = rotated_heads(name, self.shape)
        if heads is None:
            return read_gguf_rows(self.source, stored, start, stop).to(self.dtype)
        per_head = stored.sizes[0] // heads
        first, last = (
            start // per_head,
            -(-stop // per_head),
        )  # heads: the first, and after the last
        whole = read_gguf_rows(self.source, stored, first * per_head, last * per_head)
        rows = unpermuted(whole, last - first)
        return rows[start - first * per_head : stop - first * per_head].to(self.dtype)


@contextmanager
def opened_gguf(path: Path | str, *, tokenizer: bool = True) -> Iterator[GgufModel]:
    """Yields a GGUF file as a Hugging Face folder, which exists as long as the block runs.

    `tokenizer=False` leaves the file's tokenizer out. Raises InputError for a damaged file, for an
    architecture other than llama, and for a tokenizer or RoPE scaling that cannot be carried.
    """
    header = read_gguf_header(path, block_sizes())
    tied = "output.weight" not in header.tensors
    config = hf_config(header.metadata, tied, lambda name: _rope_factors(header, name), header.path)
    shape = ModelShape.from_hf(config)
    to_hf = hf_names(shape.num_layers)
    names = {to_hf.get(name, name): name for name in header.tensors if name not in ROPE_TENSORS}
    dtype = _common_dtype(header, names)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(prefix="gguf-") as scratch:
        folder = Path(scratch)
        _write_json(folder / CONFIG_FILE, config)
        names_of_ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {key: config[key] for key in names_of_ids if key in config}
        _write_json(folder / "generation_config.json", {"_from_model_config": True} | ids)
        if tokenizer:
            tokenizer_from_gguf(header.metadata, folder, header.path)
        yield GgufModel(
            folder, config, dict.fromkeys(names, header.path), header, names, shape, dtype
        )


def read_gguf_rows(
    header: GgufHeader, stored: GgufTensor, start: int = 0, stop: int | None = None
) -> Tensor:
    """Returns rows of a tensor: half precision as stored, all other block types as float32."""
    if len(stored.sizes) == 1:
        return _read(header, stored, 0, 1).view(-1)[start:stop]
    rows = stored.num_values // stored.sizes[-1]
    inner = rows // stored.sizes[0]
    stop = stored.sizes[0] if stop is None else stop
    return _read(header, stored, start * inner, (stop - start) * inner).view(
        stop - start, *stored.sizes[1:]
    )


def _read(header: GgufHeader, stored: GgufTensor, first: int, rows: int) -> Tensor:
    """Returns [rows, last size of the tensor] from run `first` of such length on.

    The blocks are expanded a few runs at a time, to bound the memory of raw bytes and copies.
    """
    width = stored.sizes[-1]
    row_bytes = stored.num_bytes * width // stored.num_values
    out = torch.empty(rows, width, dtype=_HALVES.get(stored.kind, torch.float32))
    step = max(1, _CHUNK_VALUES // width)
    with header.path.open("rb") as file:
        file.seek(stored.offset + first * row_bytes)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            raw = np.fromfile(file, np.uint8, count * row_bytes)
            if raw.size < count * row_bytes:
                raise InputError("gguf", header.path, f"cut short in {stored.name}")
            out[start : start + count] = _values(raw.reshape(count, row_bytes), stored, header.path)
    return out


def _values(raw: np.ndarray, stored: GgufTensor, path: Path) -> Tensor:
    if stored.kind in _HALVES:
        return torch.from_numpy(raw).view(_HALVES[stored.kind])
    from gguf import GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(stored.kind)
    try:
        data = raw.view(np.float32) if stored.kind == _F32 else raw
        return torch.from_numpy(np.ascontiguousarray(dequantize(data, kind), dtype=np.float32))
    except NotImplementedError as error:
        raise InputError(
            "gguf", path, f"{stored.name} is stored as {kind.name}, which gguf cannot expand"
        ) from error


def _common_dtype(header: GgufHeader, names: dict[str, str]) -> torch.dtype:
    """Returns the one dtype that holds all weights without loss; see `GgufModel`."""
    weights = [header.tensors[name] for name in names.values()]
    kinds = {tensor.kind for tensor in weights if len(tensor.sizes) > 1}
    if len(kinds) != 1 or not kinds <= _HALVES.keys():
        return torch.float32
    half = _HALVES[kinds.pop()]
    others = (read_gguf_rows(header, tensor) for tensor in weights if len(tensor.sizes) == 1)
    fits = all(torch.equal(values.to(half).to(values.dtype), values) for values in others)
    return half if fits else torch.float32


def _rope_factors(header: GgufHeader, name: str) -> list[float] | None:
    stored = header.tensors.get(name)
    if stored is None:
        return None
    if stored.kind != _F32 or len(stored.sizes) != 1 or stored.num_values > _MAX_ROPE_FACTORS:
        raise InputError("gguf", header.path, f"{name} is not a list of float32 factors")
    return [shortest(value) for value in read_gguf_rows(header, stored).numpy()]


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
