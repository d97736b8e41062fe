"""Exports a Megatron checkpoint to one GGUF file for llama.cpp, with its factors and tokenizer.

llama.cpp reads `rope_factors_long.weight` and `rope_factors_short.weight` for its architecture
`llama` where `llama.rope.scaling.type` is longrope; see docs/serving.md for what it does with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checkpoints_tools.common.units import Progress, missing_parents, refuse_existing, remove_empty
from checkpoints_tools.common.weight_map import hf_sizes
from checkpoints_tools.gguf.header import is_gguf
from checkpoints_tools.gguf.names import (
    ARCHITECTURE,
    LONG_FACTORS,
    SHORT_FACTORS,
    block_sizes,
    gguf_name,
    permuted,
    rotated_heads,
)
from checkpoints_tools.gguf.tokenizer import tokenizer_to_gguf
from checkpoints_tools.hf.exporting import check_geometry, hf_tensors
from checkpoints_tools.hf.importing import Conversion
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures import ARCHITECTURES
from megatron_longrope.model.checkpoints.checkpoint import hf_folder, read_description
from megatron_longrope.rope import FactorSet, RopeFactors, short_and_long

_CARRIER = "a GGUF file"
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}


def export_gguf(
    megatron_dir: Path | str,
    target: Path | str,
    factors: FactorSet | None = None,
    *,
    tokenizer: bool = True,
    replace: bool = True,
    progress: Progress | None = None,
) -> Conversion:
    """Writes the GGUF file `target` of a Megatron checkpoint; one process calls it.

    Matrices keep their dtype and vectors become float32, as llama.cpp wants them; λ are rounded to
    float32. A GGUF file already there is replaced once the new one is whole. Raises InputError for
    a model or factors that GGUF, or llama.cpp's architecture llama, cannot carry.

    Args:
        megatron_dir: the checkpoint.
        target: the file to write; its name ends in .gguf.
        factors: the factors to store; None takes the checkpoint's own.
        tokenizer: False leaves the tokenizer out, for engines that are fed token ids.
        replace: False refuses a file that is there.
        progress: called with the bytes of tensors written and in all.
    """
    target = Path(target)
    if not replace:
        refuse_existing("hf_dir", target)
    description = read_description(megatron_dir)
    shape, factor_set = description.shape, factors or description.factor_set
    check_geometry(factor_set, shape)
    _check_target(target)
    _check_architecture(shape, description.dtype)
    block_sizes()  # raises now, rather than after other work, where the package gguf is missing
    keys = _shape_keys(shape) | {
        "general.file_type": _FILE_TYPES[description.dtype],
        "general.name": target.stem,
    }
    keys |= _rope_keys(factor_set)
    if tokenizer:
        keys |= tokenizer_to_gguf(hf_folder(megatron_dir), shape.vocab_size)
    else:
        keys |= {"tokenizer.ggml.model": "none"}
    vectors, dtype = _rope_tensors(factor_set), description.torch_dtype
    num_bytes = _write(target, keys, vectors, Path(megatron_dir), shape, dtype, progress)
    return Conversion(target, len(hf_sizes(shape)) + len(vectors), num_bytes, description.dtype)


def _check_target(target: Path) -> None:
    if target.suffix != ".gguf":
        raise InputError(
            "hf_dir", target, "--serve gguf writes one file: give it a name that ends in .gguf"
        )
    if target.exists() and not is_gguf(target):
        raise InputError("hf_dir", target, "exists and is no GGUF file; it is left alone")


def _check_architecture(shape: ModelShape, dtype: str) -> None:
    if shape.family.gguf_architecture != ARCHITECTURE:
        known = [n for n, family in ARCHITECTURES.items() if family.gguf_architecture]
        rule = (
            f"llama.cpp reads rope factor tensors for {' and '.join(known)} of the "
            "architectures here"
        )
        raise InputError("model_type", shape.architecture, rule)
    windows = [window for window in shape.attention_windows if window is not None]
    if windows:
        raise InputError("sliding_window", windows[0], "llama.cpp's llama attends to everything")
    if dtype not in _FILE_TYPES:
        raise InputError("dtype", dtype, f"llama.cpp computes with {', '.join(_FILE_TYPES)}")


def _shape_keys(shape: ModelShape) -> dict[str, Any]:
    return {
        "llama.block_count": shape.num_layers,
        "llama.embedding_length": shape.hidden_size,
        "llama.feed_forward_length": shape.ffn_hidden_size,
        "llama.attention.head_count": shape.num_heads,
        "llama.attention.head_count_kv": shape.num_kv_heads,
        "llama.attention.key_length": shape.head_dim,
        "llama.attention.value_length": shape.head_dim,
        "llama.attention.layer_norm_rms_epsilon": shape.norm_epsilon,
        "llama.rope.dimension_count": shape.head_dim,
        "llama.rope.freq_base": shape.rope_base,
        "llama.vocab_size": shape.vocab_size,
    }


def _rope_keys(factor_set: FactorSet) -> dict[str, Any]:
    """Returns the keys of the context length and of the RoPE scaling.

    There is no `rope.scaling.factor` among them: llama.cpp would divide every angle by it, in
    addition to the factor tensors.
    """
    window = factor_set.geometry.original_length
    context = {"llama.context_length": max(factor_set.target_length, window)}
    if not _scaled(factor_set):
        return context | {"llama.rope.scaling.type": "none"}
    return context | {
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.original_context_length": window,
        "llama.rope.scaling.attn_factor": float(
            short_and_long(factor_set, _CARRIER)[1].attention_factor
        ),
    }


def _rope_tensors(factor_set: FactorSet) -> dict[str, np.ndarray]:
    if not _scaled(factor_set):
        return {}
    short, long = short_and_long(factor_set, _CARRIER)
    return {LONG_FACTORS: _as_float32(long), SHORT_FACTORS: _as_float32(short)}


def _as_float32(factors: RopeFactors) -> np.ndarray:
    values = np.array(factors.rescale, np.float32)
    if not np.isfinite(values).all() or not values.all():
        raise InputError("rescale", "…", "a factor is beyond what float32 holds")
    return values


def _scaled(factor_set: FactorSet) -> bool:
    return not all(entry.factors.is_identity for entry in factor_set.ranges)


def _write(
    target: Path,
    keys: Mapping[str, Any],
    vectors: Mapping[str, np.ndarray],
    megatron_dir: Path,
    shape: ModelShape,
    dtype: torch.dtype,
    progress: Progress | None,
) -> int:
    """Writes the file beside `target`, renames it when whole, returns the bytes of its tensors."""
    from gguf import GGMLQuantizationType, GGUFWriter

    made = missing_parents(target.resolve())
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    writer = GGUFWriter(partial, ARCHITECTURE)
    for key, value in keys.items():
        _add_key(writer, key, value)
    total = written = 0
    sizes_by_name = {name: values.shape for name, values in vectors.items()} | hf_sizes(shape)
    for name, sizes in sizes_by_name.items():
        half = len(sizes) > 1 and dtype != torch.float32
        num_bytes = int(np.prod(sizes)) * (2 if half else 4)
        kind = GGMLQuantizationType.BF16 if half and dtype == torch.bfloat16 else None
        stored = np.dtype(np.float16 if half else np.float32)
        writer.add_tensor_info(
            name if name in vectors else str(gguf_name(name)), sizes, stored, num_bytes, kind
        )
        total += num_bytes
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in vectors.values():
            writer.write_tensor_data(values)
            written += values.nbytes
        for name, tensor in hf_tensors(megatron_dir, shape):
            if not bool(torch.isfinite(tensor).all()):
                raise InputError("checkpoint", megatron_dir, f"{name} holds NaN or infinity")
            values = _stored(name, tensor, shape)
            writer.write_tensor_data(values)
            written += values.nbytes
            if progress is not None:
                progress(written, total)
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        remove_empty(made)
        raise
    writer.close()
    _put_in_place(partial, target)
    return total


def _stored(name: str, tensor: Tensor, shape: ModelShape) -> np.ndarray:
    heads = rotated_heads(name, shape)
    tensor = (permuted(tensor, heads) if heads else tensor).contiguous()
    if tensor.dim() == 1:
        return tensor.float().numpy()
    # numpy has no bfloat16; its bits are written as they are
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _add_key(writer: Any, key: str, value: Any) -> None:
    if key == "tokenizer.chat_template":
        writer.add_chat_template(value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def _put_in_place(partial: Path, target: Path) -> None:
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(target)
