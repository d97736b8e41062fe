"""torch_dist checkpoints written a chunk at a time: no model, no process groups, no more memory
than a chunk.

A chunk is what torch.distributed.checkpoint calls a box of a tensor with a place of its own.
megatron-core reads any boxes into any layout, so ours are the layers' row blocks. Layers are
stacked under one name, as megatron-core keeps them by default.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import BinaryIO, NamedTuple

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_longrope.model.checkpoints.safe_metadata import METADATA_FILE
from megatron_longrope.model.checkpoints.torch_dist import COMMON_FILE

EXTRA_STATE = "_extra_state"
MODULES_WITH_EXTRA_STATE = (
    "self_attention.linear_qkv",
    "self_attention.core_attention",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
"""Transformer Engine's layers look for an object of this name each; without FP8 it is empty."""


class StoredTensorInfo(NamedTuple):
    """A tensor as the checkpoint names it: layers stacked."""

    dtype: torch.dtype
    sizes: tuple[int, ...]


class StoredChunk(NamedTuple):
    """A chunk of `name` in a data file; an object has no offsets and sizes."""

    name: str
    offsets: tuple[int, ...] | None
    sizes: tuple[int, ...] | None
    file: str
    start: int
    length: int


def write_object(stream: BinaryIO, value: object) -> tuple[int, int]:
    """Appends a tensor or plain object as torch.distributed.checkpoint does; returns start and
    length in bytes."""
    start = stream.tell()
    with _without_checksums():
        torch.save(value, stream)
    return start, stream.tell() - start


def write_tensor(stream: BinaryIO, tensor: Tensor) -> tuple[int, int]:
    """Appends a tensor that fills its memory; returns start and length in bytes."""
    assert tensor.untyped_storage().nbytes() == tensor.nbytes, "torch.save writes the whole storage"
    return write_object(stream, tensor)


def write_metadata(
    weights: Path, tensors: Mapping[str, StoredTensorInfo], chunks: Iterable[StoredChunk]
) -> None:
    """Writes what makes a folder of data files a checkpoint: metadata.json, common.pt and, last,
    `.metadata`.

    The bytes follow from the values alone: a pickle tells one string met twice from two equal ones,
    so texts are interned.
    """
    tensors = {intern(name): info for name, info in tensors.items()}
    boxes: dict[str, list[ChunkStorageMetadata]] = {name: [] for name in tensors}
    objects: dict[str, BytesStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for chunk in chunks:
        name = intern(chunk.name)
        if chunk.offsets is None or chunk.sizes is None:
            objects[name] = BytesStorageMetadata()
            index = MetadataIndex(name)
        else:
            index = MetadataIndex(name, torch.Size(chunk.offsets), len(boxes[name]))
            boxes[name].append(
                ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
            )
        places[index] = _StorageInfo(intern(chunk.file), chunk.start, chunk.length)
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
        name: TensorStorageMetadata(
            TensorProperties(dtype=info.dtype), torch.Size(info.sizes), boxes[name]
        )
        for name, info in tensors.items()
    }
    metadata = Metadata({**entries, **objects}, storage_data=places, storage_meta=StorageMeta())
    torch.save({}, weights / COMMON_FILE)
    save_config(CheckpointingConfig("torch_dist"), str(weights))
    (weights / METADATA_FILE).write_bytes(pickle.dumps(metadata))


@contextmanager
def _without_checksums() -> Iterator[None]:
    """torch's zip checksums take longer than the disk, and no torch release compares them when it
    reads."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
