"""Megatron's torch_dist format, written without helper processes and read without trusting its
pickles."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    MCoreSavePlanner,
    TorchDistLoadShardedStrategy,
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _restore_dict_types,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from torch.distributed import checkpoint
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, Metadata, ReadItem
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta, TensorStorageMetadata

from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.model.checkpoints.safe_metadata import FIELD, one_line, read_metadata
from megatron_longrope.model.checkpoints.tensor_record import locate_tensor

COMMON_FILE = "common.pt"
_FORBIDDEN = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")


def save_sharded(state: dict[str, Any], weights: Path) -> None:
    """Writes megatron's sharded state dict into the empty folder `weights`; every rank calls it."""
    with _refusing_damage(weights, write=True):
        dist_checkpointing.save(
            state, str(weights), sharded_strategy=_InProcessSave("torch_dist", 1)
        )


def load_sharded(
    state: dict[str, Any], weights: Path, *, read_common: bool = True
) -> dict[str, Any]:
    """Returns megatron's sharded state dict filled from `weights`, whatever layout wrote it; every
    rank calls it.

    `read_common=False` leaves common.pt alone: in Megatron-LM's checkpoints it holds any objects.
    Raises InputError for missing, damaged or hostile files, and for tensors of other names or
    shapes.
    """
    metadata = read_metadata(weights)
    with _refusing_damage(weights):
        loaded: dict[str, Any] = dist_checkpointing.load(
            state,
            str(weights),
            sharded_strategy=_SafeLoad(metadata),
            common_strategy=_SafeCommonLoad() if read_common else _NoCommonLoad(),
        )
    return loaded


class StoredTensors:
    """The tensors of a checkpoint as they are stored, read one at a time: no model, no process
    groups."""

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
        """Returns a whole tensor, or row `layer` of one that stacks all layers. Raises InputError
        for a damaged one."""
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
        """Yields (first row, rows) of what `read` returns, chunk by chunk where the chunks hold
        whole rows.

        Rows are good until the next ones are asked for.
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
        place = self._metadata.storage_data[index]
        path = self._weights / place.relative_path
        with _refusing_damage(self._weights), path.open("rb", buffering=0) as file:
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
        """Returns a tensor whose memory the next chunk uses again."""
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


class _Writer(FileSystemWriter):
    """torch's own writer, in this process and thread; it leaves no path and no random id in the
    checkpoint."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


class _InProcessSave(SaveShardedStrategy):
    """megatron-core's own save strategy starts processes for writing; a checkpoint here needs
    none."""

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        flat, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, keep_only_main_replica=True
        )
        checkpoint.save(
            mcore_to_pyt_state_dict(flat, is_loading=False),
            storage_writer=_Writer(checkpoint_dir, thread_count=1, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True


class _SafeReader(FileSystemReader):
    """Hands out the metadata that was checked, and has no second file to fall back to."""

    def __init__(self, path: str | Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self) -> Metadata:
        return self._metadata


class _SafePlanner(MCoreLoadPlanner):
    """torch's planner unpickles objects stored between the tensors; this one reads plain values and
    tensors only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.original_state_dict[read_item.dest_index.fqn] = torch.load(
            value, map_location="cpu", weights_only=True
        )


class _SafeLoad(TorchDistLoadShardedStrategy):
    def __init__(self, metadata: Metadata) -> None:
        super().__init__()
        self._metadata = metadata

    def load(
        self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path
    ) -> dict[str, Any]:
        tensors = [
            value for value in nested_values(sharded_state_dict) if isinstance(value, ShardedTensor)
        ]
        flat, paths, names = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict)
        target = mcore_to_pyt_state_dict(flat, is_loading=True)
        planner = _SafePlanner(
            shapes_validation_sharded_tensors=[
                tensor for tensor in tensors if not tensor.allow_shape_mismatch
            ],
            allow_shape_mismatch_sharded_tensors={
                t.key: t for t in tensors if t.allow_shape_mismatch
            },
        )
        checkpoint.load(
            target, storage_reader=_SafeReader(checkpoint_dir, self._metadata), planner=planner
        )
        unwrapped = {name: _unwrap_pyt_sharded_tensor(value) for name, value in target.items()}
        loaded: dict[str, Any] = _replace_sharded_keys_with_state_dict_keys(unwrapped, paths, names)
        _restore_dict_types(loaded, sharded_state_dict)
        return loaded


class _SafeCommonLoad(TorchCommonLoadStrategy):
    """Says weights_only itself: without that an environment variable could switch it off."""

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        path = Path(checkpoint_dir) / COMMON_FILE
        if not path.is_file():
            raise InputError(
                FIELD, checkpoint_dir, f"not a whole Megatron checkpoint: it has no {COMMON_FILE}"
            )
        common = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(common, dict):
            raise InputError(FIELD, path, "damaged: it does not hold a dictionary")
        return common


class _NoCommonLoad(TorchCommonLoadStrategy):
    """Leaves common.pt unread."""

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        return {}


@contextmanager
def _refusing_damage(weights: Path, *, write: bool = False) -> Iterator[None]:
    """Turns what torch and megatron-core raise over a checkpoint's files into one line."""
    try:
        yield
    except (
        CheckpointException
    ) as error:  # torch's collection of what each rank met; not an Exception
        cause = next(iter(error.failures.values()))[0]
        raise _explained(cause, weights, write) from error
    except (
        CheckpointingException,
        UnpicklingError,
        RuntimeError,
        ValueError,
        LookupError,
        EOFError,
        OSError,
    ) as error:
        raise _explained(error, weights, write) from error


def _explained(cause: BaseException, weights: Path, write: bool) -> LongRopeError:
    if isinstance(cause, LongRopeError):
        return cause
    if write:
        return LongRopeError(f"{weights}: the checkpoint could not be written: {one_line(cause)}")
    forbidden = _FORBIDDEN.search(" ".join(str(cause).split()))
    if forbidden:
        return InputError(
            FIELD,
            weights,
            f"refused: a pickle in it asks for {forbidden[1]}, which no checkpoint needs",
        )
    if isinstance(cause, UnpicklingError):  # torch's text tells people to unpickle it anyway
        return InputError(
            FIELD, weights, "refused: damaged, or a pickle in it holds more than tensors and values"
        )
    return InputError(FIELD, weights, f"cannot be read: {one_line(cause)}")
