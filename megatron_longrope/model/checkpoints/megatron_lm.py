"""Checkpoints of Megatron-LM (`--ckpt-format torch_dist`), described by the arguments it saved.

    <root>/latest_checkpointed_iteration.txt   "100" or "release"
    <root>/iter_0000100/                       torch_dist, with common.pt that holds the arguments

common.pt is a pickle of any objects. `inert_pickle.py` reads it without importing them, and only
plain values are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.model.architectures import family_of_megatron_flags, megatron_flags
from megatron_longrope.model.checkpoints.inert_pickle import Namespace, read_common
from megatron_longrope.model.checkpoints.safe_metadata import (
    FIELD,
    METADATA_FILE,
    read_metadata,
)
from megatron_longrope.model.shape import ModelShape
from megatron_longrope.rope import FactorSet, Llama3, NoScaling, RopeGeometry

LATEST_FILE = "latest_checkpointed_iteration.txt"
_COMMON_FILE = "common.pt"
_ITERATION = re.compile(r"iter_\d{7,}|release")
_EMBEDDING = "embedding.word_embeddings.weight"
_LLAMA3_WINDOW = 8192
"""The original length of Llama 3.1's scaling, which megatron-core hard-codes.

Its rotary embedding hard-codes the factors 1 and 4 of the low and high frequencies too.
"""
_MUST_BE: Mapping[str, tuple[object, ...]] = {
    "position_embedding_type": ("rope",),
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "swiglu": (True,),
    "normalization": ("RMSNorm",),
    "add_bias_linear": (False,),
    "num_experts": (None,),
    "multi_latent_attention": (False,),
    "qk_l2_norm": (False,),
    "apply_layernorm_1p": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "mtp_num_layers": (None, 0),
    "window_attn_skip_freq": (None,),
    "attention_output_gate": (False,),
    "experimental_attention_variant": (None,),
    "linear_attention_freq": (None,),
    "softmax_type": ("vanilla",),
    "squared_relu": (False,),
    "attention_dropout": (0.0,),
    "hidden_dropout": (0.0,),
}
"""Arguments that change the model, with the values that our model can do.

An argument that is absent counts as the first value: older releases do not know them all.
"""
_MUST_SAY = ("position_embedding_type", "swiglu", "normalization", "add_bias_linear")
"""Arguments that must be there: every release has them, and their defaults are another model's."""
_TRAINING_ONLY = frozenset({"attention_dropout", "hidden_dropout"})
"""Arguments that change training but not the model; any value is read."""


def is_megatron_lm(directory: Path) -> bool:
    """Returns whether `directory` is a Megatron-LM checkpoint, of all iterations or of one."""
    if (directory / LATEST_FILE).is_file():
        return True
    return bool(_ITERATION.fullmatch(directory.name)) and (directory / METADATA_FILE).is_file()


def iteration_folder(directory: Path) -> Path:
    """Returns the folder of the latest iteration, or `directory` if it is one itself.

    Raises InputError where the iteration named as the latest is missing.
    """
    latest = directory / LATEST_FILE
    if not latest.is_file():
        return directory
    said = latest.read_bytes()[:64].decode("ascii", "replace").strip()
    if said != "release" and not (said.isascii() and said.isdigit()):
        raise InputError(FIELD, latest, f"says {said!r}, which is no iteration")
    folder = directory / ("release" if said == "release" else f"iter_{int(said):07d}")
    if not folder.is_dir():
        raise InputError(FIELD, latest, f"names {folder.name}, which is not there")
    return folder


def read_megatron_lm(directory: Path) -> tuple[ModelShape, FactorSet, torch.dtype, int]:
    """Returns shape, factors, dtype and iteration of a Megatron-LM checkpoint.

    Raises InputError for arguments whose model ours cannot be, and for damaged files. The size of
    the vocabulary is what --vocab-size said, else that with padding.
    """
    folder = iteration_folder(directory)
    common = read_common(folder / _COMMON_FILE)
    args = common.get("args")
    if not isinstance(args, Namespace):
        raise InputError(FIELD, folder / _COMMON_FILE, "holds no arguments of Megatron-LM")
    entry = read_metadata(folder).state_dict_metadata.get(_EMBEDDING)
    if not isinstance(entry, TensorStorageMetadata):
        raise InputError(FIELD, folder, f"has no tensor {_EMBEDDING}")
    shape, factors = _describe(_Arguments(vars(args), folder), entry.size[0])
    iteration = common.get("iteration")
    return shape, factors, entry.properties.dtype, iteration if isinstance(iteration, int) else 0


class _Arguments:
    """The arguments of a Megatron-LM checkpoint, and errors that name them."""

    def __init__(self, values: Mapping[str, Any], folder: Path) -> None:
        self.values, self.folder = values, folder

    def get(self, name: str, default: object = None) -> Any:
        """Returns an argument; `default` where it is None or where the release lacks it."""
        value = self.values.get(name)
        return default if value is None else value

    def refuse(self, name: str, rule: str) -> InputError:
        """Returns the error that refuses an argument's value."""
        return InputError(f"args.{name}", self.values.get(name), f"{rule} ({self.folder})")


def _describe(args: _Arguments, embedding_rows: int) -> tuple[ModelShape, FactorSet]:
    for name, carried in _MUST_BE.items():
        value = args.values.get(name, None if name in _MUST_SAY else carried[0])
        if value not in carried and name not in _TRAINING_ONLY:
            raise args.refuse(name, f"only {carried[0]} is supported")
    heads, hidden = args.get("num_attention_heads"), args.get("hidden_size")
    grouped = args.get("group_query_attention", False)
    vocab_size = args.get("vocab_size") or args.get("padded_vocab_size") or embedding_rows
    if not isinstance(vocab_size, int) or vocab_size > embedding_rows:
        raise args.refuse("vocab_size", f"the embedding has {embedding_rows} rows")
    scaled = args.get("use_rope_scaling", False) is True
    layers = args.get("num_layers")
    values = {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": args.get("ffn_hidden_size"),
        "num_heads": heads,
        "num_kv_heads": args.get("num_query_groups") if grouped else heads,
        "head_dim": args.get("kv_channels"),
        "vocab_size": vocab_size,
        "context_length": _LLAMA3_WINDOW if scaled else args.get("max_position_embeddings"),
        "rope_base": args.get("rotary_base", 10000),
        "norm_epsilon": args.get("norm_epsilon") or args.get("layernorm_epsilon", 1e-5),
        "tie_embeddings": not args.get("untie_embeddings_and_output_weights", False),
        "initializer_range": args.get("init_method_std", 0.02),
        "attention_windows": _windows(args, layers),
        "rope_free_layers": _rope_free(args, layers),
        "architecture": _architecture(args),
    }
    shape = build_config(ModelShape, values, f"the arguments in {args.folder}")
    geometry = RopeGeometry(
        base=shape.rope_base, head_dim=shape.head_dim, original_length=shape.context_length
    )
    method = Llama3(
        factor=args.get("rope_scaling_factor", 8.0), low_freq_factor=1.0, high_freq_factor=4.0
    )
    return shape, (method if scaled else NoScaling()).factor_set(geometry)


def _architecture(args: _Arguments) -> str:
    """Returns the model family that has these options.

    Raises InputError where none has: Megatron-LM can combine what no family does.
    """
    flags = [name for name in megatron_flags() if args.get(name) not in (None, False)]
    family = family_of_megatron_flags(flags)
    if family is None:
        raise args.refuse(flags[0], f"no supported family has {' and '.join(flags)} together")
    return family.model_type


def _windows(args: _Arguments, layers: object) -> tuple[int, ...]:
    """Returns each layer's sliding window.

    Megatron-LM's (left, right) counts the tokens before the query; ours counts the query too.
    """
    window = args.get("window_size")
    if window is None or not isinstance(layers, int):
        return ()
    if (
        not isinstance(window, list | tuple)
        or len(window) != 2
        or not all(isinstance(n, int) for n in window)
    ):
        raise args.refuse("window_size", "two whole numbers")
    if window[1] not in (0, -1) or window[0] < 0:
        raise args.refuse("window_size", "only windows before the query are supported")
    return (window[0] + 1,) * layers


def _rope_free(args: _Arguments, layers: object) -> tuple[int, ...]:
    """Returns the layers, counted from 0, that do not rotate.

    The argument is a number n, for every n-th layer, or a list with 1 for each of these layers.
    """
    frequency = args.get("no_rope_freq")
    if frequency is None or not isinstance(layers, int):
        return ()
    if isinstance(frequency, int) and frequency > 0:
        return tuple(range(frequency - 1, layers, frequency))
    if isinstance(frequency, list) and len(frequency) == layers and set(frequency) <= {0, 1}:
        return tuple(layer for layer, skipped in enumerate(frequency) if skipped)
    raise args.refuse("no_rope_freq", "a positive number, or 0 or 1 for each layer")
