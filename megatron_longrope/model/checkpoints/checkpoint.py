"""The Megatron checkpoint folder: weights, what they are, and the files of the model they came
from.

    <dir>/weights/        megatron-core's torch_dist
    <dir>/longrope.json   shape, factor set in force, iteration, settings of training
    <dir>/hf/             config.json, generation_config.json, tokenizer files, carried unchanged

Any layout reads what any other wrote. What Megatron-LM wrote is read as well (`megatron_lm.py`).
A folder is written beside its place and put there when whole.
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
    """What `longrope.json` says. `consumed_tokens` counts training tokens; `training` is its
    writer's own."""

    shape: ModelShape
    factor_set: FactorSet
    dtype: DtypeName
    angle_precision: AnglePrecision = "float64"
    iteration: NonNegativeInt = 0
    consumed_tokens: NonNegativeInt = 0
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def torch_dtype(self) -> torch.dtype:
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
    """Writes the model, its factors and `extra_sharded` (an optimizer's sharded state, say); every
    rank calls it.

    `training` is JSON. A checkpoint already at `directory` stays until the new one is whole;
    anything else there is an InputError. `hf_files` is a folder whose files other than weights are
    carried along.
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
    """Returns what the checkpoint says of itself, without reading weights. Raises InputError where
    it does not."""
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
    """Fills the model from a checkpoint of any layout and dtype; factors stay as they are. Every
    rank calls it.

    Raises InputError for a checkpoint of another shape, and for missing, damaged or hostile files.
    """
    load_checkpoint(model, directory)


def load_checkpoint(
    model: LongRopeModel, directory: Path | str, extra_sharded: Mapping[str, Any] | None = None
) -> tuple[CheckpointDescription, dict[str, Any]]:
    """As `load_weights`; returns the description and `extra_sharded` filled from the checkpoint,
    key by key.

    The caller puts the description's factors in force if it wants them.
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
    """Returns megatron's sharded state of each chunk. In a checkpoint a weight has its name in the
    whole model, so it tells nothing of chunks.
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
    """Makes the whole folder `partial` durable and renames it to `directory`, whose old contents go
    last.

    Killed in between, the old one is found under its other name by every function that reads.
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
    """Fills the chunk; only the places for Transformer Engine's extra state, which no checkpoint of
    ours has, stay."""
    found = chunk.load_state_dict(weights, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith(_EXTRA_STATE)]
    assert not missing and not found.unexpected_keys, (missing, found.unexpected_keys)


def _with_empty_objects(chunks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Transformer Engine's extra state is a pickle, which is never read back: its places stay, as
    megatron's other readers look for them, and are empty. What is lost is the history of delayed
    scaling."""
    for value in (value for sharded in chunks.values() for value in sharded.values()):
        if isinstance(value, ShardedObject):
            value.data = None
    return dict(chunks)


def _without_objects(chunks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """megatron's layers keep a place for Transformer Engine's extra state; ours is empty whoever
    wrote the weights."""
    return {
        number: {
            name: value for name, value in sharded.items() if not isinstance(value, ShardedObject)
        }
        for number, sharded in chunks.items()
    }


def refuse_foreign_folder(directory: Path) -> None:
    """Raises InputError where `directory` is there and is no checkpoint of ours, which alone is
    replaced."""
    if (
        directory.exists()
        and not is_checkpoint(directory)
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise InputError(
            "checkpoint", directory, "exists and is not a Megatron checkpoint; it is left alone"
        )


def carry_hf_files(source: Path | None, target: Path) -> None:
    """Copies the files of an HF folder that travel into the folder `target`, made for them."""
    if source is None:
        return
    if not source.is_dir():
        raise InputError("hf_files", source, "no such folder")
    target.mkdir(exist_ok=True)
    copy_carried(source, target)


def _aside(directory: Path) -> Path:
    return directory.with_name(directory.name + ".replaced")


def _locate(directory: Path) -> Path:
    """Returns `directory`, or its previous contents where a kill came between taking them away and
    the new ones."""
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
