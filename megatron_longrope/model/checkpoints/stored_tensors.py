"""Reading single tensors of a torch_dist checkpoint, without a model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from megatron_longrope.errors import InputError
from megatron_longrope.model.checkpoints.safe_metadata import FIELD, read_metadata
from megatron_longrope.model.checkpoints.tensor_record import locate_tensor
from megatron_longrope.model.checkpoints.torch_dist import refusing_damage


class StoredTensors:
    """The tensors of a checkpoint, read one at a time, without a model or process groups."""

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._metadata = read_metadata(weights)
        self._buffer = bytearray()
        entries = self._metadata.state_dict_metadata
        self.entries = {
            name: entry
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def read(self, name: str, layer: int | None = None) -> torch.Tensor:
        """Returns a whole tensor, or row `layer` of a tensor that stacks all layers.

        Raises InputError where it is absent or damaged.
        """
        if name not in self.entries:
            raise InputError(FIELD, self._weights, f"has no tensor {name}")
        entry = self.entries[name]
        size, prefix = (entry.size, 0) if layer is None else (entry.size[1:], 1)
        tensor = torch.empty(size, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            if (
                layer is not None
                and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]
            ):
                continue
            part = self._read_chunk(MetadataIndex(name, chunk.offsets), chunk.sizes, tensor.dtype)
            part = part if layer is None else part[layer - chunk.offsets[0]]
            where = zip(chunk.offsets[prefix:], chunk.sizes[prefix:], strict=True)
            tensor[tuple(slice(offset, offset + length) for offset, length in where)] = part
        return tensor

    def row_parts(self, name: str, layer: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields what `read` returns in parts, each as (number of its first row, rows).

        A part is a stored chunk where chunks hold whole rows; otherwise the whole tensor is the
        only part. A part is valid until the next one is asked for, which uses its memory.
        """
        if name not in self.entries:
            raise InputError(FIELD, self._weights, f"has no tensor {name}")
        entry = self.entries[name]
        at = 0 if layer is None else 1
        boxes = [
            box
            for box in entry.chunks
            if layer is None or box.offsets[0] <= layer < box.offsets[0] + box.sizes[0]
        ]
        if any(box.sizes[at + 1 :] != entry.size[at + 1 :] for box in boxes):
            yield 0, self.read(name, layer)
            return
        for box in sorted(boxes, key=lambda box: box.offsets[at]):
            part = self._read_chunk(
                MetadataIndex(name, box.offsets), box.sizes, entry.properties.dtype
            )
            yield box.offsets[at], part if layer is None else part[layer - box.offsets[0]]

    def _read_chunk(
        self, index: MetadataIndex, sizes: torch.Size, dtype: torch.dtype
    ) -> torch.Tensor:
        """Returns one stored chunk; it is read directly where it is a plain tensor's record."""
        place = self._metadata.storage_data[index]
        path = self._weights / place.relative_path
        with refusing_damage(self._weights), path.open("rb", buffering=0) as file:
            found = locate_tensor(file, place.offset, place.length)
            if found is not None and (found.dtype, found.sizes) == (dtype, tuple(sizes)):
                return self._read_numbers(file, found.start, sizes, dtype)
            file.seek(place.offset)
            part = torch.load(
                io.BytesIO(file.read(place.length)), map_location="cpu", weights_only=True
            )
        if not isinstance(part, torch.Tensor) or part.shape != sizes or part.dtype != dtype:
            raise InputError(FIELD, path, f"{index.fqn} is not what the metadata says")
        return part

    def _read_numbers(
        self, file: RawIOBase, start: int, sizes: torch.Size, dtype: torch.dtype
    ) -> torch.Tensor:
        """Returns the numbers at byte `start`, in memory that the next chunk will use again."""
        if sizes.numel() == 0:
            return torch.empty(sizes, dtype=dtype)
        num_bytes = sizes.numel() * dtype.itemsize
        if len(self._buffer) < num_bytes:
            self._buffer = bytearray(num_bytes)
        view, done = memoryview(self._buffer)[:num_bytes], 0
        file.seek(start)
        while done < num_bytes:
            count = file.readinto(view[done:])
            if not count:
                raise EOFError("the file ended while it was read")
            done += count
        return torch.frombuffer(self._buffer, dtype=dtype, count=sizes.numel()).view(sizes)
