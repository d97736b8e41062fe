"""Writes torch_dist checkpoints chunk by chunk, without a model, process groups or much memory.

A chunk is a box of a tensor (offsets and sizes along every dim) that lies in one piece in a data
file of torch.distributed.checkpoint. megatron-core reads chunks of any boxes into any layout of
processes; ours are blocks of rows of one layer. All layers are stacked under one name, with the
layer as the first dim, as megatron-core stores them by default.
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
"""Modules whose Transformer Engine version looks for an object in the checkpoint, its FP8 state.

Without FP8 that object is empty, but loading fails where it is missing.
"""


class StoredTensorInfo(NamedTuple):
    """Dtype and sizes of a tensor of the checkpoint, all layers stacked."""

    dtype: torch.dtype
    sizes: tuple[int, ...]


class StoredChunk(NamedTuple):
    """A chunk of a tensor, or a whole object, in a data file."""

    name: str
    """Name of the tensor or object."""
    offsets: tuple[int, ...] | None
    """First index of the chunk along every dim of the tensor; None for an object."""
    sizes: tuple[int, ...] | None
    """Sizes of the chunk; None for an object."""
    file: str
    """Name of the data file."""
    start: int
    """First byte in the data file."""
    length: int
    """Length in bytes."""


def write_object(stream: BinaryIO, value: object) -> tuple[int, int]:
    """Appends a tensor or plain object as torch.distributed.checkpoint stores it.

    Returns its first byte in the file and its length in bytes.
    """
    start = stream.tell()
    with _without_checksums():
        torch.save(value, stream)
    return start, stream.tell() - start


def write_tensor(stream: BinaryIO, tensor: Tensor) -> tuple[int, int]:
    """Appends a tensor; returns its first byte in the file and its length in bytes.

    The tensor must be its whole storage, as torch.save writes the storage of a view entirely.
    """
    assert tensor.untyped_storage().nbytes() == tensor.nbytes, "torch.save writes the whole storage"
    return write_object(stream, tensor)


def write_metadata(
    weights: Path, tensors: Mapping[str, StoredTensorInfo], chunks: Iterable[StoredChunk]
) -> None:
    """Writes the files that make a folder of data files a checkpoint.

    These are common.pt, metadata.json and, last of all, `.metadata`, which lists every chunk.

    Equal arguments give equal bytes. Strings are interned for that: a pickle stores a string object
    met again as a reference, but an equal string of another identity a second time.
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
    """Switches torch's zip checksums off inside the block.

    Computing them takes longer than writing to disk, and no torch release compares them on reading.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
