"""Loads a model from a Hugging Face folder, a Megatron checkpoint or a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from checkpoints_tools.hf.folder import CONFIG_FILE, is_hf_folder, open_hf_folder
from checkpoints_tools.hf.importing import check_folder, load_hf_weights
from megatron_longrope.artifacts.summaries import named_checkpoint
from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel, ModelShape, build_model
from megatron_longrope.model.architectures import with_rope_said
from megatron_longrope.model.checkpoints.checkpoint import (
    DESCRIPTION_FILE,
    hf_folder,
    is_checkpoint,
    load_weights,
    read_description,
)
from megatron_longrope.model.checkpoints.megatron_lm import is_megatron_lm
from megatron_longrope.model.engine.settings import BackendSettings, Purpose, Recompute
from megatron_longrope.rope import AnglePrecision, FactorSet, OwnScaling
from megatron_longrope.runtime import Runtime

FolderKind = Literal["hf", "megatron"]
_RUN_FILES = ("config.yaml", "result.json")
_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model as its files describe it, without its weights."""

    kind: FolderKind
    path: Path
    """The Hugging Face folder or the Megatron checkpoint."""
    name: str
    """Name of the folder that was asked for."""
    shape: ModelShape
    own: OwnScaling
    """The factors that the model arrives with."""
    files: Path
    """Folder with config.json and tokenizer files, where there are any."""

    @property
    def tokenizer_file(self) -> Path | None:
        """The model's tokenizer.json; None where it has none."""
        file = self.files / _TOKENIZER_FILE
        return file if file.is_file() else None


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model with its own rescale factors in force, and the files that belong to it."""

    model: LongRopeModel
    tokenizer_file: Path | None
    """The model's tokenizer.json; None where it has none."""
    name: str
    """Name of the folder the model was loaded from."""
    hf_files: Path | None
    """Folder with config.json and tokenizer files, needed to save the model again; may be None."""
    own: OwnScaling
    """The factors that the model arrived with, whichever are in force later."""


def load_model(
    path: Path | str,
    runtime: Runtime,
    *,
    dtype: torch.dtype = torch.float32,
    angle_precision: AnglePrecision = "float64",
    recompute: Recompute = "none",
    offload: bool = False,
    backend: BackendSettings | None = None,
    purpose: Purpose = "scoring",
) -> LoadedModel:
    """Returns the model in `path`, cut as the runtime's layout says; every rank calls it.

    Raises InputError for a folder that is none of the three kinds, for a damaged one, and for a
    backend that cannot serve the model.

    Args:
        path: Hugging Face folder, Megatron checkpoint or run directory.
        runtime: the running processes and their layout.
        dtype: the weights are cast to it.
        angle_precision: arithmetic of the RoPE angles, "float64" or transformers' own ("hf").
        recompute: which activations are computed again in the backward pass.
        offload: whether the inputs of recomputed layers wait in host memory.
        backend: engine and precision settings; None chooses by device.
        purpose: what the model is loaded for, which the choice of engine depends on.
    """
    folder = open_model(path)
    model = build_model(
        folder.shape,
        runtime,
        dtype=dtype,
        recompute=recompute,
        initialize=False,
        angle_precision=angle_precision,
        offload=offload,
        backend=backend,
        purpose=purpose,
    )
    if folder.kind == "hf":
        load_hf_weights(model, open_hf_folder(folder.path))
    else:
        load_weights(model, folder.path)
    model.set_factors(folder.own.factor_set)
    return LoadedModel(
        model,
        folder.tokenizer_file,
        folder.name,
        folder.files if folder.files.is_dir() else None,
        folder.own,
    )


def open_model(path: Path | str) -> ModelFolder:
    """Returns the model in `path` without its weights, of which only headers are read.

    Raises InputError for a folder that is none of the three kinds, and for a damaged one.
    """
    kind, folder = find_model(path)
    name = Path(path).resolve().name
    if kind == "hf":
        opened = open_hf_folder(folder)
        shape, _ = check_folder(opened)
        own = OwnScaling.from_hf(with_rope_said(opened.config))
        return ModelFolder(kind, folder, name, shape, own, folder)
    described = read_description(folder)
    own = OwnScaling(described.factor_set)
    return ModelFolder(kind, folder, name, described.shape, own, hf_folder(folder))


def model_factors(path: Path | str) -> FactorSet:
    """Returns the rescale factors of the model in `path` without reading its weights."""
    kind, folder = find_model(path)
    if kind == "hf":
        return OwnScaling.from_hf(with_rope_said(open_hf_folder(folder).config)).factor_set
    return read_description(folder).factor_set


def find_model(path: Path | str) -> tuple[FolderKind, Path]:
    """Returns the kind of the model folder that `path` leads to, and the folder itself.

    A run directory leads to the checkpoint that its result.json names, or else to the checkpoint
    written last. Raises InputError where there is no model.
    """
    path = Path(path)
    if is_checkpoint(path) or is_megatron_lm(path):
        return "megatron", path
    if not path.is_dir():
        raise InputError("model", path, "no such folder")
    if is_hf_folder(path):
        return "hf", path
    if any((path / name).is_file() for name in _RUN_FILES):
        return find_model(_model_of_run(path))
    if (path / CONFIG_FILE).is_file():
        return "hf", path  # without weights: whoever reads it reports what is missing
    raise InputError(
        "model",
        path,
        f"neither a Hugging Face folder ({CONFIG_FILE} and safetensors: this is a model folder "
        "without config), "
        f"nor a Megatron checkpoint ({DESCRIPTION_FILE}, or Megatron-LM's), nor a run directory",
    )


def _model_of_run(run: Path) -> Path:
    named = _named_checkpoint(run)
    if named is not None:
        return named
    found = [
        file.parent
        for pattern in ("*", "*/*")
        for file in run.glob(f"checkpoints/{pattern}/{DESCRIPTION_FILE}")
    ]
    whole = [folder for folder in found if not folder.name.endswith((".partial", ".replaced"))]
    if not whole:
        raise InputError(
            "model", run, "a run directory without checkpoints: nothing was trained there yet"
        )
    return max(
        whole, key=lambda folder: ((folder / DESCRIPTION_FILE).stat().st_mtime_ns, folder.name)
    )


def _named_checkpoint(run: Path) -> Path | None:
    result = run / "result.json"
    name = named_checkpoint(result) if result.is_file() else None
    return None if name is None else run / name
