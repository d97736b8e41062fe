"""Hugging Face folder → Megatron checkpoint, in the dtype the weights have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_tools.hf_folder import HfFolder, open_hf_folder
from checkpoints_tools.weight_map import hf_sizes, rule_of, tensor_parallel_share, to_megatron
from megatron_longrope.model import LongRopeModel, ModelShape, build_model
from megatron_longrope.model.checkpoint import save_checkpoint
from megatron_longrope.rope import factor_set_from_hf
from megatron_longrope.runtime import Runtime

TIED = {"lm_head.weight": "model.embed_tokens.weight"}


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote. `left_out` names tensors not carried because they are computed or stored twice."""

    target: Path
    num_tensors: int
    num_bytes: int
    dtype: str
    left_out: tuple[str, ...] = ()


def import_hf(hf_dir: Path | str, megatron_dir: Path | str, runtime: Runtime) -> Conversion:
    """Writes the Megatron checkpoint of an HF folder; every rank calls it.

    Raises InputError for a folder that is damaged, of an architecture or with an option that is not supported.
    """
    return import_folder(open_hf_folder(hf_dir), megatron_dir, runtime)


def import_folder(folder: HfFolder, megatron_dir: Path | str, runtime: Runtime) -> Conversion:
    """As `import_hf`, of an opened folder, which may be a GGUF file seen as one."""
    shape, dtype = check_folder(folder)
    factor_set = factor_set_from_hf(folder.config)
    model = build_model(shape, runtime, dtype=dtype, initialize=False)
    load_hf_weights(model, folder)
    model.set_factors(factor_set)
    save_checkpoint(model, megatron_dir, hf_files=folder.path)
    names = hf_sizes(shape)
    left_out = tuple(sorted(folder.files.keys() - names.keys()))
    num_bytes = shape.num_parameters * dtype.itemsize
    return Conversion(Path(megatron_dir), len(names), num_bytes, str(dtype).removeprefix("torch."), left_out)


def check_folder(folder: HfFolder) -> tuple[ModelShape, torch.dtype]:
    """Returns shape and dtype of an HF folder whose weights are all there; raises InputError otherwise."""
    shape = ModelShape.from_hf(folder.config)
    tied = TIED if shape.tie_embeddings else {}
    return shape, folder.check_weights(hf_sizes(shape), tied_to=tied)


@torch.no_grad()
def load_hf_weights(model: LongRopeModel, folder: HfFolder) -> None:
    """Fills this rank's share of the model, in the model's dtype, one weight at a time."""
    groups = model.runtime.groups
    layers = model.stage.decoder.layers
    first_layer = layers[0].layer_number - 1 if len(layers) else 0
    for name, parameter in model.stage.named_parameters():
        rule = rule_of(name, model.shape, first_layer)
        whole = to_megatron(rule, [folder.tensor(part) for part in rule.hf], model.shape)
        _fill(parameter, tensor_parallel_share(rule, whole, groups.tp.rank(), groups.tp.size()))


def _fill(parameter: Tensor, share: Tensor) -> None:
    assert parameter.shape == share.shape, (tuple(parameter.shape), tuple(share.shape))
    parameter.copy_(share)
