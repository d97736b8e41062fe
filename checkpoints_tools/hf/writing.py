"""Writes Hugging Face model folders with safetensors weights, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from checkpoints_tools.hf.folder import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from megatron_longrope.errors import InputError
from megatron_longrope.model.checkpoints.carried_files import (
    HF_FILES,
    carried_files,
    copy_carried,
    holds_only_templates,
)
from megatron_longrope.model.checkpoints.checkpoint import put_in_place

MAX_SHARD_BYTES = 4 << 30
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def write_hf_folder(
    target: Path,
    config: Mapping[str, Any] | bytes,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    carried_from: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Writes a model folder and returns the bytes of its weights.

    Raises InputError where `target` holds anything an export does not write.

    Args:
        target: the folder to write; an export that is there is replaced.
        config: config.json, as bytes to be written unchanged or as a mapping.
        tensors: (name, tensor) of every weight; as many are held in memory as fit into one file.
        carried_from: folder whose tokenizer and other settings files are copied; None copies none.
        max_shard_bytes: most bytes of weights in one file, unless one weight alone is larger.
    """
    refuse_foreign_hf_folder(target)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_settings(partial, config, carried_from)
    total = _write_shards(partial, tensors, max_shard_bytes)
    put_in_place(partial, target)
    return total


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> int:
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total = 0

    def flush() -> None:
        file = folder / f"shard-{len(shards)}"
        save_file(held, file, metadata={"format": "pt"})
        # save_file lets the owner alone read what it writes
        file.chmod((folder / CONFIG_FILE).stat().st_mode)
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > max_bytes:
            flush()
            held_bytes = 0
        held[name] = tensor.contiguous()
        held_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    for number, file in enumerate(shard_names(len(shards))):
        (folder / f"shard-{number}").rename(folder / file)
    write_safetensors_index(folder, shards, total)
    return total


def shard_names(count: int) -> list[str]:
    """Returns transformers' names for the files of a folder with `count` weight files.

    >>> shard_names(1), shard_names(2)[0]
    (['model.safetensors'], 'model-00001-of-00002.safetensors')
    """
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]


def write_safetensors_index(
    folder: Path, shards: Sequence[Iterable[str]], total_bytes: int
) -> None:
    """Writes the index that says which file holds each weight; a single file needs none.

    `shards` gives the names of the tensors in each file.
    """
    if len(shards) == 1:
        return
    named = zip(shards, shard_names(len(shards)), strict=True)
    weight_map = {name: file for names, file in named for name in names}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(
        json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def write_settings(
    folder: Path, config: Mapping[str, Any] | bytes, carried_from: Path | None
) -> None:
    """Writes config.json and copies the tokenizer and other settings files of `carried_from`.

    `config` as bytes is written unchanged.
    """
    if carried_from is not None:
        copy_carried(carried_from, folder, leave=[CONFIG_FILE])
    raw = (
        config
        if isinstance(config, bytes)
        else (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    )
    (folder / CONFIG_FILE).write_bytes(raw)


def refuse_foreign_hf_folder(target: Path) -> None:
    """Raises InputError where `target` holds anything an export does not write."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError("hf_dir", target, "exists and is no folder; it is left alone")
    written = {*HF_FILES, *carried_files(target), INDEX_FILE}
    others = [
        path
        for path in target.iterdir()
        if path.name not in written and not _OURS.fullmatch(path.name)
    ]
    foreign = sorted(path.name for path in others if not holds_only_templates(path))
    if foreign:
        raise InputError(
            "hf_dir", target, f"holds files no export writes ({foreign[0]}); it is left alone"
        )
