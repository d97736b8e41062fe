"""Megatron checkpoint → Hugging Face folder, read tensor by tensor from the files: no model, no process groups."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints_tools.hf_folder import CONFIG_FILE, read_config, write_hf_folder
from checkpoints_tools.import_hf import Conversion
from checkpoints_tools.serving import with_engine_keys
from checkpoints_tools.weight_map import WeightRule, bound_rules, hf_sizes, to_hf
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.model.checkpoint import CheckpointDescription, hf_folder, read_description, weights_folder
from megatron_longrope.model.torch_dist import StoredTensors
from megatron_longrope.rope import FactorSet, factor_set_from_hf, hf_rope_config


def export_hf(
    megatron_dir: Path | str, hf_dir: Path | str, factors: FactorSet | None = None, *, static: bool = False
) -> Conversion:
    """Writes the HF folder of a Megatron checkpoint with `factors` in force, its own if None; one process does it.

    A checkpoint nobody changed since its import gets its config.json back byte for byte; `static` adds the keys that
    engines which choose one set read the temperature by. Raises InputError for what transformers' `longrope` cannot
    carry, and for damaged checkpoints.
    """
    description = read_description(megatron_dir)
    carried = hf_folder(megatron_dir)
    config = _config(description, factors, carried)
    if static:
        config = with_engine_keys(json.loads(config) if isinstance(config, bytes) else config)
    num_bytes = write_hf_folder(Path(hf_dir), config, hf_tensors(Path(megatron_dir), description.shape),
                                carried_from=carried if carried.is_dir() else None)  # fmt: skip
    return Conversion(Path(hf_dir), len(hf_sizes(description.shape)), num_bytes, description.dtype)


def hf_tensors(megatron_dir: Path, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """Yields (HF name, tensor) of a Megatron checkpoint, in the order of the model, in the dtype stored."""
    stored = StoredTensors(weights_folder(megatron_dir))
    for rule, layer, bound in bound_rules(shape):
        yield from to_hf(bound, read_weight(stored, rule, layer, bound), shape).items()


def read_weight(stored: StoredTensors, rule: WeightRule, layer: int | None, bound: WeightRule) -> Tensor:
    """Returns one whole Megatron weight; checkpoints keep layers stacked under one name, or each under its own."""
    if layer is not None and bound.stored not in stored.entries:
        return stored.read(rule.stacked, layer)
    return stored.read(bound.stored)


def _config(description: CheckpointDescription, factors: FactorSet | None, carried: Path) -> dict[str, Any] | bytes:
    wanted = factors or description.factor_set
    check_geometry(wanted, description.shape)
    original = read_config(carried) if (carried / CONFIG_FILE).is_file() else None
    if original is None:
        return description.shape.to_hf() | hf_rope_config(wanted) | {"torch_dtype": description.dtype}
    if ModelShape.from_hf(original) != description.shape:
        raise InputError("checkpoint", carried, "the config.json carried along describes another shape")
    if description.iteration == 0 and wanted == factor_set_from_hf(original):
        return (carried / CONFIG_FILE).read_bytes()
    base = {key: value for key, value in original.items() if key != "original_max_position_embeddings"}
    dtype_key = "dtype" if "dtype" in original else "torch_dtype"
    return base | hf_rope_config(wanted) | {dtype_key: description.dtype}


def check_geometry(factors: FactorSet, shape: ModelShape) -> None:
    """Raises InputError for factors made for another rotary embedding than the checkpoint's."""
    geometry = factors.geometry
    if geometry.head_dim != shape.head_dim:
        raise InputError("factors.head_dim", geometry.head_dim, f"the checkpoint's is {shape.head_dim}")
    if geometry.base != shape.rope_base:
        raise InputError("factors.base", geometry.base, f"the checkpoint's is {shape.rope_base}")
