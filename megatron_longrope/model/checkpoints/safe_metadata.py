"""Reading the `.metadata` file of a torch_dist checkpoint without running code from it.

The file says which tensors there are, in which chunks, and where each chunk's bytes lie. It is a
pickle: torch would unpickle it without limits, and unpickling can call any function by its name. So
it is read through an unpickler that knows only the names on a closed list, all of them classes
that merely hold values. What comes out is then checked against the data files, so that a forged
entry can neither read outside the folder nor make anyone allocate memory for numbers that are not
there.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as OldTensorProperties
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_longrope.errors import InputError

METADATA_FILE = ".metadata"
FIELD = "checkpoint"
"""Name under which errors are reported."""
_MAX_METADATA_BYTES = 1 << 30
_DATA_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.distcp")
"""What a data file may be called: a plain name, so that no entry leads out of the folder."""

_DTYPES = frozenset(
    {
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    }
)
_DCP = "torch.distributed.checkpoint"
# Module → names. They make dataclasses, enums, sizes, dtypes and paths; none of them acts when it
# is called with what a pickle passes.
_ALLOWED: Mapping[str, frozenset[str]] = {
    f"{_DCP}.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    f"{_DCP}.filesystem": frozenset({"_StorageInfo", "_StoragePrefix"}),
    f"{_DCP}.planner": frozenset({"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"}),
    "torch.distributed._shard.sharded_tensor.metadata": frozenset(
        {"MEM_FORMAT_ENCODING", "TensorProperties"}
    ),
    # Megatron-LM's own checkpoints keep every rank's save plan and their path.
    "megatron.core.dist_checkpointing.strategies.torch": frozenset(
        {"MCoreMetadata", "MCoreSavePlan"}
    ),
    "pathlib": frozenset({"Path", "PosixPath", "PurePosixPath"}),
    "pathlib._local": frozenset({"Path", "PosixPath", "PurePosixPath"}),
    "collections": frozenset({"OrderedDict"}),
    "torch": frozenset({"Size"}) | _DTYPES,
    "torch.serialization": frozenset({"_get_layout"}),
}
# What unpickling raises for damaged bytes.
_WRONG_PICKLE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _ForbiddenNameError(pickle.UnpicklingError):
    """Raised where a pickle names something outside the closed list."""


class _MetadataUnpickler(pickle.Unpickler):
    """Resolves names on the closed list, and refuses all others before they are imported."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        # An exact match also keeps out dotted names, which reach into what a listed module imports.
        if global_name not in _ALLOWED.get(module_name, ()):
            raise _ForbiddenNameError(f"{module_name}.{global_name}")
        return super().find_class(module_name, global_name)

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenNameError("a persistent object")


def read_metadata(weights: Path) -> Metadata:
    """Returns the checked metadata of the torch_dist checkpoint in the folder `weights`.

    Every entry lies within a data file beside it. Raises InputError for a name outside the closed
    list, and for files or entries that are missing, cut short or not what they are said to be.
    """
    path = weights / METADATA_FILE
    if not path.is_file():
        raise InputError(
            FIELD, weights, f"not a whole Megatron checkpoint: it has no {METADATA_FILE}"
        )
    if path.stat().st_size > _MAX_METADATA_BYTES:
        raise InputError(FIELD, path, f"larger than any metadata ({_MAX_METADATA_BYTES} bytes)")
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except _ForbiddenNameError as error:
        raise InputError(
            FIELD, path, f"refused: its pickle asks for {error}, which no checkpoint needs"
        ) from error
    except _WRONG_PICKLE as error:
        raise InputError(FIELD, path, f"damaged: {one_line(error)}") from error
    try:
        _check(metadata, weights)
    # The checks below meet attributes that are missing or of another type than they should be.
    except (AttributeError, AssertionError, TypeError) as error:
        raise InputError(FIELD, path, f"damaged: {one_line(error)}") from error
    return metadata  # type: ignore[no-any-return]


def one_line(error: BaseException, limit: int = 240) -> str:
    """Returns the error's text in one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " …"


def _check(metadata: object, weights: Path) -> None:
    """Raises InputError or AssertionError where an entry or its place is not as it should be."""
    if not isinstance(metadata, Metadata):
        raise InputError(
            FIELD, weights / METADATA_FILE, "its pickle is not a checkpoint's metadata"
        )
    entries, places = metadata.state_dict_metadata, metadata.storage_data
    assert isinstance(entries, dict) and isinstance(places, dict), (
        "no dictionary of entries and places"
    )
    sizes: dict[str, int] = {}
    for index, place in places.items():
        assert isinstance(index, MetadataIndex) and isinstance(place, _StorageInfo), (
            "a place of unknown kind"
        )
        _check_place(index, place, weights, sizes)
    for name, entry in entries.items():
        assert isinstance(name, str), "an entry's name is no text"
        if isinstance(entry, TensorStorageMetadata):
            _check_tensor(name, entry, places, weights)
        elif not isinstance(entry, BytesStorageMetadata):
            raise InputError(FIELD, weights, f"{name} is of unknown kind {type(entry).__name__}")


def _check_place(
    index: MetadataIndex, place: _StorageInfo, weights: Path, sizes: dict[str, int]
) -> None:
    """Checks that an entry's bytes lie within a data file; `sizes` remembers the files' sizes."""
    name = place.relative_path
    if not isinstance(name, str) or not _DATA_FILE.fullmatch(name):
        raise InputError(
            FIELD, weights, f"{index.fqn} lies at {name!r}, which is no data file of this folder"
        )
    if getattr(place, "transform_descriptors", None):
        raise InputError(
            FIELD, weights, f"{index.fqn} is stored transformed, which is not supported"
        )
    if name not in sizes:
        path = weights / name
        if not path.is_file():
            raise InputError(FIELD, weights, f"data file {name} is missing")
        sizes[name] = path.stat().st_size
    assert type(place.offset) is int and type(place.length) is int, f"{index.fqn} has no byte range"
    if place.offset < 0 or place.length < 0 or place.offset + place.length > sizes[name]:
        raise InputError(
            FIELD,
            weights / name,
            f"cut short: {index.fqn} ends at byte {place.offset + place.length}, "
            f"the file has {sizes[name]}",
        )


def _check_tensor(
    name: str, entry: TensorStorageMetadata, places: dict[Any, Any], weights: Path
) -> None:
    """Checks that a tensor's chunks fill it, and that each has as many bytes as it needs.

    Otherwise a file of a few bytes could claim a tensor that fills the memory.
    """
    properties = entry.properties
    assert isinstance(properties.dtype, torch.dtype) and isinstance(entry.size, torch.Size), (
        f"{name} has no size"
    )
    assert isinstance(properties, TensorProperties | OldTensorProperties), (
        f"{name} has no properties"
    )
    filled = 0
    for chunk in entry.chunks:
        assert isinstance(chunk, ChunkStorageMetadata), f"{name} has a chunk of unknown kind"
        place = places.get(MetadataIndex(name, chunk.offsets))
        if place is None:
            raise InputError(
                FIELD, weights, f"{name} has no data for its chunk at {tuple(chunk.offsets)}"
            )
        numel = math.prod(chunk.sizes)
        inside = all(
            o >= 0 and s >= 0 and o + s <= n
            for o, s, n in zip(chunk.offsets, chunk.sizes, entry.size, strict=True)
        )
        if not inside or numel * properties.dtype.itemsize > place.length:
            raise InputError(
                FIELD, weights, f"{name} claims a chunk of {tuple(chunk.sizes)} that is not there"
            )
        filled += numel
    if filled != math.prod(entry.size):
        raise InputError(
            FIELD, weights, f"{name} claims {tuple(entry.size)} and holds {filled} numbers"
        )
