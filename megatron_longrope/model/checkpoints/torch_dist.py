"""Megatron's torch_dist format, written by this process itself and read without trusting pickles.

megatron-core's own strategies for it start processes to write, and unpickle whatever they find. The
classes below replace those parts and leave the rest, above all resharding, to megatron-core.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
from torch.distributed.checkpoint.metadata import StorageMeta

from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.model.checkpoints.safe_metadata import FIELD, one_line, read_metadata

COMMON_FILE = "common.pt"
_FORBIDDEN = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")


def save_sharded(state: dict[str, Any], weights: Path) -> None:
    """Writes a sharded state dict into the empty folder `weights`; every rank calls it."""
    with refusing_damage(weights, write=True):
        dist_checkpointing.save(
            state, str(weights), sharded_strategy=_InProcessSave("torch_dist", 1)
        )


def load_sharded(
    state: dict[str, Any], weights: Path, *, read_common: bool = True
) -> dict[str, Any]:
    """Returns a sharded state dict filled from the folder `weights`; every rank calls it.

    Any layout may have written the folder. `read_common=False` leaves common.pt unread, which in
    Megatron-LM's checkpoints holds objects of any kind. Raises InputError for missing, damaged or
    hostile files, and for tensors of other names or shapes.
    """
    metadata = read_metadata(weights)
    with refusing_damage(weights):
        loaded: dict[str, Any] = dist_checkpointing.load(
            state,
            str(weights),
            sharded_strategy=_SafeLoad(metadata),
            common_strategy=_SafeCommonLoad() if read_common else _NoCommonLoad(),
        )
    return loaded


class _Writer(FileSystemWriter):
    """The writer of torch without the path and the random id that it leaves in checkpoints.

    Equal weights then give equal files.
    """

    def storage_meta(self) -> StorageMeta:
        """Returns metadata without them."""
        return StorageMeta()


class _InProcessSave(SaveShardedStrategy):
    """Saves in this process and thread.

    megatron-core's own save strategy starts writer processes by `spawn`. These import the entry
    script again, so one without `if __name__ == "__main__"` hangs or dies.
    """

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        """Writes what this rank holds of the state; replicas are written once."""
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
        """Whether objects in the state are written here too, not by megatron-core beside it."""
        return True


class _SafeReader(FileSystemReader):
    """Returns the metadata that was checked before; torch's own reader would unpickle it again."""

    def __init__(self, path: str | Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self) -> Metadata:
        """Returns the checked metadata."""
        return self._metadata


class _SafePlanner(MCoreLoadPlanner):
    """Reads objects stored between the tensors only where they are plain values and tensors.

    The planner of torch unpickles them without limits.
    """

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts one stored object into the state; torch.load refuses what is not plain."""
        self.original_state_dict[read_item.dest_index.fqn] = torch.load(
            value, map_location="cpu", weights_only=True
        )


class _SafeLoad(TorchDistLoadShardedStrategy):
    """Loads like megatron-core's strategy, through `_SafeReader` and `_SafePlanner`."""

    def __init__(self, metadata: Metadata) -> None:
        super().__init__()
        self._metadata = metadata

    def load(
        self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path
    ) -> dict[str, Any]:
        """Returns the state filled from the checkpoint, resharded where layouts differ.

        These are the steps of megatron-core's own `load`, which gives no way to pass a planner.
        """
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
    """Reads common.pt with `weights_only=True`, plain values and tensors only.

    The argument is given here because an environment variable of torch changes its default.
    """

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        """Returns what common.pt holds: the part of the state that is not sharded."""
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
        """Returns nothing."""
        return {}


@contextmanager
def refusing_damage(weights: Path, *, write: bool = False) -> Iterator[None]:
    """Turns what torch and megatron-core raise over a checkpoint's files into an error in one line.

    That is an InputError where files are read, and a LongRopeError where they are written.
    """
    try:
        yield
    # torch's collection of what each rank raised; it derives from BaseException, not Exception
    except CheckpointException as error:
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
