"""Exports a Megatron checkpoint to a Hugging Face folder, row by row from file to file.

It builds no model and needs no process groups, and memory does not grow with the model's size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_tools.common.stored_weights import StoredWeights, read_weight
from checkpoints_tools.common.tensor_file import begin_writeback, is_finite, plan_file, write_from
from checkpoints_tools.common.units import (
    Progress,
    Record,
    Report,
    Unit,
    forget,
    make_units,
    partial_folder,
    refuse_existing,
)
from checkpoints_tools.common.weight_map import bound_rules, hf_sizes, to_hf
from checkpoints_tools.hf.folder import CONFIG_FILE, read_config
from checkpoints_tools.hf.importing import Conversion
from checkpoints_tools.hf.writing import (
    MAX_SHARD_BYTES,
    refuse_foreign_hf_folder,
    shard_names,
    write_safetensors_index,
    write_settings,
)
from checkpoints_tools.serving import with_engine_keys
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures import with_rope_said
from megatron_longrope.model.architectures.weights import WeightRule
from megatron_longrope.model.checkpoints.checkpoint import (
    CheckpointDescription,
    hf_folder,
    put_in_place,
    read_description,
    weights_folder,
)
from megatron_longrope.model.checkpoints.stored_tensors import StoredTensors
from megatron_longrope.rope import FactorSet, factor_set_from_hf, hf_rope_config

__all__ = ["export_hf", "hf_tensors", "read_weight"]


def export_hf(
    megatron_dir: Path | str,
    hf_dir: Path | str,
    factors: FactorSet | None = None,
    *,
    static: bool = False,
    replace: bool = True,
    processes: int = 1,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Conversion:
    """Writes the Hugging Face folder of a Megatron checkpoint; one process calls it.

    After an interruption the same call goes on where it stopped. A checkpoint that was not changed
    since its import gets its config.json back byte for byte. An export already there is replaced
    once the new one is whole. Raises InputError for factors that transformers' `longrope` cannot
    carry, and for damaged checkpoints.

    Args:
        megatron_dir: the checkpoint.
        hf_dir: the folder to write.
        factors: the factors to put in config.json; None takes the checkpoint's own.
        static: adds the attention factor under the keys that vLLM and SGLang read.
        replace: False refuses an export that is there.
        processes: number of processes to convert in.
        progress: called with the bytes converted and in all.
        max_shard_bytes: most bytes of weights in one file, unless one weight alone is larger.
    """
    target, megatron_dir = Path(hf_dir).resolve(), Path(megatron_dir)
    if not replace:
        refuse_existing("hf_dir", target)
    description = read_description(megatron_dir)
    carried = hf_folder(megatron_dir)
    config = _config(description, factors, carried)
    if static:
        config = with_engine_keys(json.loads(config) if isinstance(config, bytes) else config)
    refuse_foreign_hf_folder(target)
    weights = StoredWeights(weights_folder(megatron_dir), description)
    maker = _ShardFile(weights, tuple(map(tuple, _shards(description, max_shard_bytes))))
    total = sum(unit.num_bytes for unit in maker.units())
    plan = {"export": weights.fingerprint(), "max_shard_bytes": max_shard_bytes}
    with partial_folder(target, plan, total) as partial:
        make_units(partial, maker.units(), maker, processes=processes, progress=progress)
        write_safetensors_index(partial, maker.shards, total)
        write_settings(partial, config, carried if carried.is_dir() else None)
        forget(partial)
        put_in_place(partial, target)
    return Conversion(Path(hf_dir), len(hf_sizes(description.shape)), total, description.dtype)


@dataclass(frozen=True)
class _ShardFile:
    """Writes the weight files of the folder; `shards` names the tensors of each."""

    weights: StoredWeights
    shards: tuple[tuple[str, ...], ...]

    def units(self) -> list[Unit]:
        """Returns the weight files to write, with their sizes."""
        sizes, itemsize = hf_sizes(self.weights.shape), self.weights.dtype.itemsize
        return [
            Unit(file, sum(torch.Size(sizes[name]).numel() * itemsize for name in names))
            for file, names in zip(shard_names(len(self.shards)), self.shards, strict=True)
        ]

    def __call__(self, number: int, path: Path, report: Report) -> Record:
        shape, wanted = self.weights.shape, frozenset(self.shards[number])
        sizes = hf_sizes(shape)
        head, places = plan_file(
            {name: (self.weights.dtype, sizes[name]) for name in self.shards[number]}
        )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            os.pwrite(descriptor, head, 0)
            for rule, layer, bound in bound_rules(shape):
                for name, first, rows in self._pieces(rule, layer, bound, wanted):
                    start = places[name].start + first * places[name].row_bytes
                    write_from(descriptor, start, rows)
                    begin_writeback(descriptor, start, rows.nbytes)
                    report(rows.nbytes)
        finally:
            os.close(descriptor)
        return {}

    def _pieces(
        self, rule: WeightRule, layer: int | None, bound: WeightRule, wanted: frozenset[str]
    ) -> Iterator[tuple[str, int, Tensor]]:
        """Yields (HF name, first row, rows) for each run of rows of one Megatron weight.

        Rows of weights that are not `wanted` in this file are left out.

        Args:
            rule: the Megatron weight's rule for any layer.
            layer: number of the layer; None outside the layers.
            bound: the rule of that layer.
            wanted: HF names of the weights in this file.
        """
        if wanted.isdisjoint(bound.hf):
            return
        for first, part in self.weights.parts(rule, layer, bound):
            if not is_finite(part):
                raise InputError(
                    "checkpoint", self.weights.folder, f"{bound.stored} holds NaN or infinity"
                )
            # Run by run of the Megatron weight, [at, at + count) is cut with [first, stop), the
            # rows of this part, and moved to where its rows lie in the Hugging Face weight.
            at, stop = 0, first + part.shape[0]
            for source, start, count in bound.row_runs(self.weights.shape):
                low, high = max(at, first), min(at + count, stop)
                if low < high and source is not None and bound.hf[source] in wanted:
                    yield bound.hf[source], start + low - at, part[low - first : high - first]
                at += count


def hf_tensors(megatron_dir: Path, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """Yields (HF name, tensor) for every weight of a checkpoint, in the order of the model."""
    stored = StoredTensors(weights_folder(megatron_dir))
    for rule, layer, bound in bound_rules(shape):
        yield from to_hf(bound, read_weight(stored, rule, layer, bound), shape).items()


def _shards(description: CheckpointDescription, max_bytes: int) -> list[list[str]]:
    """Returns the tensors' names for each weight file, as many as fit, in the model's order."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, sizes in hf_sizes(description.shape).items():
        num_bytes = torch.Size(sizes).numel() * description.torch_dtype.itemsize
        if shards[-1] and held + num_bytes > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += num_bytes
    return shards


def config_of_export(megatron_dir: Path, factors: FactorSet) -> dict[str, Any] | bytes:
    """Returns the config.json of a checkpoint under `factors`, as `export_hf` writes it."""
    return _config(read_description(megatron_dir), factors, hf_folder(megatron_dir))


def _config(
    description: CheckpointDescription, factors: FactorSet | None, carried: Path
) -> dict[str, Any] | bytes:
    """Returns the config.json to write: the imported one's bytes where they are still right."""
    wanted, shape = factors or description.factor_set, description.shape
    check_geometry(wanted, shape)
    original = read_config(carried) if (carried / CONFIG_FILE).is_file() else None
    if original is None:
        return shape.to_hf() | hf_rope_config(wanted) | {"torch_dtype": description.dtype}
    said = ModelShape.from_hf(original)
    if said.model_copy(update={"attention_windows": shape.attention_windows}) != shape:
        raise InputError(
            "checkpoint", carried, "the config.json carried along describes another shape"
        )
    if description.iteration == 0 and said == shape and _says(original, wanted):
        return (carried / CONFIG_FILE).read_bytes()
    base = {
        key: value for key, value in original.items() if key != "original_max_position_embeddings"
    }
    if said != shape:
        base |= shape.family.write_attention(shape)
    dtype_keys = {"dtype", "torch_dtype"} & original.keys() or {"torch_dtype"}
    return base | hf_rope_config(wanted) | dict.fromkeys(dtype_keys, description.dtype)


def _says(config: dict[str, Any], wanted: FactorSet) -> bool:
    """Returns whether a config asks for exactly these factors.

    rope_type `dynamic` never does: its factors follow the length of the input, while a factor set
    has been fixed at one length.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "dynamic" in (rope.get("rope_type"), rope.get("type")):
        return False
    return wanted == factor_set_from_hf(with_rope_said(config))


def check_geometry(factors: FactorSet, shape: ModelShape) -> None:
    """Raises InputError for factors of another base, head_dim or window than the checkpoint's."""
    geometry = factors.geometry
    if geometry.head_dim != shape.head_dim:
        raise InputError(
            "factors.head_dim", geometry.head_dim, f"the checkpoint's is {shape.head_dim}"
        )
    if geometry.base != shape.rope_base:
        raise InputError("factors.base", geometry.base, f"the checkpoint's is {shape.rope_base}")
    if geometry.original_length != shape.context_length:
        rule = f"the checkpoint's window is {shape.context_length}"
        raise InputError("factors.original_length", geometry.original_length, rule)
