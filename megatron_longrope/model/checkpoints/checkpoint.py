"""The Megatron checkpoint folder: weights, their description, files of the model they came from.

    <dir>/weights/        megatron-core's torch_dist
    <dir>/longrope.json   shape, factor set in force, iteration, settings of training
    <dir>/hf/             config.json, generation_config.json, tokenizer files, carried unchanged

Any layout reads what any other wrote. What Megatron-LM wrote is read as well (`megatron_lm.py`).
A folder is written under another name and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from pydantic import Field, NonNegativeInt

from megatron_longrope.config import StrictConfig, build_config
from megatron_longrope.errors import InputError
from megatron_longrope.model.checkpoints.carried_files import copy_carried
from megatron_longrope.model.checkpoints.megatron_lm import (
    is_megatron_lm,
    iteration_folder,
    read_megatron_lm,
)
from megatron_longrope.model.checkpoints.torch_dist import load_sharded, save_sharded
from megatron_longrope.model.longrope_model import LongRopeModel
from megatron_longrope.model.shape import ModelShape
from megatron_longrope.rope import AnglePrecision, FactorSet, factors_from_json, factors_to_json

FORMAT = "longrope-checkpoint"
VERSION = 1
DESCRIPTION_FILE = "longrope.json"
WEIGHTS_FOLDER = "weights"
HF_FOLDER = "hf"

_EXTRA_STATE = "_extra_state"
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]


class CheckpointDescription(StrictConfig):
    """The contents of `longrope.json`."""

    shape: ModelShape
    factor_set: FactorSet
    dtype: DtypeName
    angle_precision: AnglePrecision = "float64"
    iteration: NonNegativeInt = 0
    """Number of training steps so far."""
    consumed_tokens: NonNegativeInt = 0
    """Number of predicted tokens in training so far."""
    training: dict[str, Any] = Field(default_factory=dict)
    """State and settings of the training that wrote it; only that training reads them."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return _DTYPES[self.dtype]


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """Returns the name of a dtype that checkpoints may have; raises InputError for another."""
    for name, known in _DTYPES.items():
        if known == dtype:
            return name  # type: ignore[return-value]
    raise InputError("dtype", dtype, f"one of {', '.join(_DTYPES)}")


def is_checkpoint(directory: Path | str) -> bool:
    """Returns whether `directory` is a Megatron checkpoint folder of ours, by its contents."""
    return (_locate(Path(directory)) / DESCRIPTION_FILE).is_file()


def save_checkpoint(
    model: LongRopeModel,
    directory: Path | str,
    *,
    iteration: int = 0,
    consumed_tokens: int = 0,
    training: Mapping[str, Any] | None = None,
    extra_sharded: Mapping[str, Any] | None = None,
    hf_files: Path | None = None,
) -> None:
    """Writes the model and its factors as a checkpoint; every rank calls it.

    A checkpoint already at `directory` stays until the new one is whole. Raises InputError where
    anything else is there.

    Args:
        model: The model, with its factors in force.
        directory: Folder of the checkpoint.
        iteration: Number of training steps so far.
        consumed_tokens: Number of predicted tokens in training so far.
        training: State and settings of the training, as values of JSON.
        extra_sharded: Sharded states to write beside the model's, such as an optimizer's.
        hf_files: A folder whose config and tokenizer files are carried along.
    """
    directory = Path(directory)
    partial = directory.with_name(directory.name + ".partial")
    refuse_foreign_folder(directory)
    description = CheckpointDescription(
        shape=model.shape,
        factor_set=model.factor_set,
        dtype=dtype_name(model.dtype),
        angle_precision=model.angle_precision,
        iteration=iteration,
        consumed_tokens=consumed_tokens,
        training=dict(training or {}),
    )
    runtime = model.runtime
    if runtime.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / WEIGHTS_FOLDER).mkdir(parents=True)
        write_description(partial, description)
        carry_hf_files(hf_files, partial / HF_FOLDER)
    runtime.barrier()
    state = {"model": _with_empty_objects(sharded_weights(model)), **(extra_sharded or {})}
    save_sharded(state, partial / WEIGHTS_FOLDER)
    if runtime.is_main:
        put_in_place(partial, directory)
    runtime.barrier()


def read_description(directory: Path | str) -> CheckpointDescription:
    """Returns a checkpoint's description without reading its weights.

    Megatron-LM's checkpoints are described by their arguments. Raises InputError where the
    description is missing, damaged or of another version.
    """
    path = _locate(Path(directory)) / DESCRIPTION_FILE
    if not path.is_file() and is_megatron_lm(path.parent):
        return _describe_megatron_lm(path.parent)
    if not path.is_file():
        raise InputError(
            "checkpoint", directory, f"not a Megatron checkpoint: it has no {DESCRIPTION_FILE}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("checkpoint", path, f"not a whole JSON file: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise InputError("checkpoint", path, f'it has no "format": "{FORMAT}"')
    version = values.pop("version", None)
    if version != VERSION:
        raise InputError(
            "version", version, f"this release reads checkpoints of version {VERSION} ({path})"
        )
    values["factor_set"] = factors_from_json(values.get("factor_set"), str(path))
    return build_config(CheckpointDescription, values, str(path))


def _describe_megatron_lm(directory: Path) -> CheckpointDescription:
    shape, factor_set, dtype, iteration = read_megatron_lm(directory)
    return CheckpointDescription(
        shape=shape, factor_set=factor_set, dtype=dtype_name(dtype), iteration=iteration
    )


def load_weights(model: LongRopeModel, directory: Path | str) -> None:
    """Fills the model's weights from a checkpoint of any layout and dtype; every rank calls it.

    The model's factors stay as they are. Raises InputError for a checkpoint of another shape, and
    for missing, damaged or hostile files.
    """
    load_checkpoint(model, directory)


def load_checkpoint(
    model: LongRopeModel, directory: Path | str, extra_sharded: Mapping[str, Any] | None = None
) -> tuple[CheckpointDescription, dict[str, Any]]:
    """Fills the model's weights as `load_weights` does, and further states with them.

    Returns the description, and `extra_sharded` filled from the checkpoint. The caller puts the
    description's factors in force if it wants them.
    """
    description = read_description(directory)
    for name in ModelShape.model_fields:
        mine, stored = getattr(model.shape, name), getattr(description.shape, name)
        if mine != stored:
            raise InputError(
                "checkpoint", directory, f"its {name} is {stored}, the model's is {mine}"
            )
    state = {"model": _without_objects(sharded_weights(model)), **(extra_sharded or {})}
    loaded = load_sharded(
        state, weights_folder(directory), read_common=not is_megatron_lm(Path(directory))
    )
    for number, chunk in enumerate(model.chunks):
        _fill(chunk, loaded["model"][str(number)])
    return description, {key: loaded[key] for key in extra_sharded or {} if key in loaded}


def sharded_weights(model: LongRopeModel) -> dict[str, dict[str, Any]]:
    """Returns megatron-core's sharded state dict of each chunk of this process.

    Each weight in it carries its name and place in the whole model. A checkpoint keeps these alone,
    so it does not depend on how the model was cut into chunks.
    """
    return {str(number): chunk.sharded_state_dict() for number, chunk in enumerate(model.chunks)}


def weights_folder(directory: Path | str) -> Path:
    """Returns where a checkpoint's torch_dist files are."""
    if is_megatron_lm(Path(directory)):
        return iteration_folder(Path(directory))
    return _locate(Path(directory)) / WEIGHTS_FOLDER


def hf_folder(directory: Path | str) -> Path:
    """Returns where a checkpoint's carried files are; the folder may be absent."""
    return _locate(Path(directory)) / HF_FOLDER


def write_description(directory: Path, description: CheckpointDescription) -> None:
    """Writes `longrope.json` into a folder that is not in place yet."""
    values = {"format": FORMAT, "version": VERSION, **description.model_dump(mode="json")}
    values["factor_set"] = factors_to_json(description.factor_set)
    (directory / DESCRIPTION_FILE).write_text(
        json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )


def put_in_place(partial: Path, directory: Path) -> None:
    """Writes the folder `partial` through to disk and renames it to `directory`.

    An old `directory` is renamed first and deleted last. After a kill between the two renames,
    every function that reads finds the old one under its other name (`_locate`).
    """
    _sync(partial)
    aside = _aside(directory)
    if directory.exists():
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
    partial.rename(directory)
    _sync_one(directory.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _fill(chunk: torch.nn.Module, weights: Mapping[str, Any]) -> None:
    """Fills the chunk's weights; only Transformer Engine's extra state may be missing.

    No checkpoint of ours has it, see `_with_empty_objects`.
    """
    found = chunk.load_state_dict(weights, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith(_EXTRA_STATE)]
    assert not missing and not found.unexpected_keys, (missing, found.unexpected_keys)


def _with_empty_objects(chunks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the chunks' state with Transformer Engine's extra state emptied.

    The extra state is a pickle, and no pickle of objects is ever read back here. Its entries are
    written empty, because other readers of Megatron checkpoints look for them. What is lost is the
    history of maxima of FP8's delayed scaling, which training builds up again.
    """
    for value in (value for sharded in chunks.values() for value in sharded.values()):
        if isinstance(value, ShardedObject):
            value.data = None
    return dict(chunks)


def _without_objects(chunks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the chunks' state without Transformer Engine's extra state, which is not read."""
    return {
        number: {
            name: value for name, value in sharded.items() if not isinstance(value, ShardedObject)
        }
        for number, sharded in chunks.items()
    }


def refuse_foreign_folder(directory: Path) -> None:
    """Raises InputError where `directory` exists and is neither empty nor a checkpoint of ours.

    Only a checkpoint is ever replaced.
    """
    if (
        directory.exists()
        and not is_checkpoint(directory)
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise InputError(
            "checkpoint", directory, "exists and is not a Megatron checkpoint; it is left alone"
        )


def carry_hf_files(source: Path | None, target: Path) -> None:
    """Copies the files of a Hugging Face folder that travel into the new folder `target`."""
    if source is None:
        return
    if not source.is_dir():
        raise InputError("hf_files", source, "no such folder")
    target.mkdir(exist_ok=True)
    copy_carried(source, target)


def _aside(directory: Path) -> Path:
    return directory.with_name(directory.name + ".replaced")


def _locate(directory: Path) -> Path:
    """Returns `directory`, or where its old contents are if a kill came while it was replaced."""
    return _aside(directory) if not directory.exists() and _aside(directory).is_dir() else directory


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
