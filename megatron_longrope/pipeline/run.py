"""The context that the stages of one run share: recipe, run directory, processes, documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from checkpoints_tools.hf.folder import open_hf_folder
from checkpoints_tools.hf.importing import check_folder
from checkpoints_tools.load_any import find_model, load_model
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.stages import StageMarker
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel, ModelShape
from megatron_longrope.model.architectures import with_rope_said
from megatron_longrope.model.checkpoints.checkpoint import (
    hf_folder,
    is_checkpoint,
    read_description,
)
from megatron_longrope.model.engine.settings import BackendSettings, Purpose
from megatron_longrope.pipeline.corpus import Corpus
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.stages.markers import StageMarkers, json_sha256
from megatron_longrope.pipeline.stages.runner import StageRunner
from megatron_longrope.presets import model_path
from megatron_longrope.rope import (
    AnglePrecision,
    OwnScaling,
    RopeFactors,
    RopeGeometry,
    factors_from_json,
)
from megatron_longrope.runtime import Runtime
from megatron_longrope.search import SearchProgress

BASE = "base"
"""Name of the checkpoint of the imported model."""
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _silent_search(name: str) -> Callable[[SearchProgress], None]:
    return lambda progress: None


def _silent_training(name: str) -> Callable[[int, int, str], None]:
    return lambda done, total, message: None


@dataclass(frozen=True)
class Progress:
    """Where a run shows how far it is; silent by default."""

    stage: Callable[[str], None] = lambda text: None
    """Is called with what begins."""
    search: Callable[[str], Callable[[SearchProgress], None]] = _silent_search
    """Maps the name of a search stage to a function that is called with the search's progress."""
    training: Callable[[str], Callable[[int, int, str], None]] = _silent_training
    """Maps the name of a training stage to a function that is called with steps done, steps in all,
    and a message."""


@dataclass(frozen=True)
class Source:
    """The model that a run starts from, without its weights."""

    shape: ModelShape
    own: OwnScaling
    files: Path
    """The folder with its config and tokenizer."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer, read from its folder; raises InputError where there is none."""
        return load_tokenizer(self.files)


def geometry_of(shape: ModelShape) -> RopeGeometry:
    """Returns the geometry that factors of a model are made for: base, head_dim and window."""
    return RopeGeometry(
        base=shape.rope_base, head_dim=shape.head_dim, original_length=shape.context_length
    )


def find_source(recipe: Recipe, directory: RunDirectory) -> Source:
    """Returns the model of a recipe, from the run directory if it has been imported already.

    Only configs and the headers of weight files are read. Raises InputError for a folder that is
    damaged, and for an architecture or an option that is not supported.
    """
    imported = directory.checkpoint(BASE)
    if is_checkpoint(imported):
        description = read_description(imported)
        own = OwnScaling(description.factor_set)
        return Source(description.shape, own, hf_folder(imported))
    source = hf_source(recipe)
    folder = open_hf_folder(source)
    shape, _ = check_folder(folder)
    return Source(shape, OwnScaling.from_hf(with_rope_said(folder.config)), source)


def hf_source(recipe: Recipe) -> Path:
    """Returns the Hugging Face folder that the recipe names; raises InputError for others."""
    source = model_path(recipe.model)
    kind, folder = find_model(source)
    if kind != "hf":
        raise InputError(
            "model", source, "an extension starts from a Hugging Face folder; export it first"
        )
    return folder


@dataclass(frozen=True)
class RunInputs:
    """What a run is made from, known before any process works: nothing in it changes."""

    recipe: Recipe
    directory: RunDirectory
    source: Source
    corpus: Corpus

    @property
    def shape(self) -> ModelShape:
        """Sizes of the model."""
        return self.source.shape

    @property
    def own(self) -> OwnScaling:
        """The scaling that the model arrived with."""
        return self.source.own

    @property
    def geometry(self) -> RopeGeometry:
        """The geometry that factors of this run are made for."""
        return geometry_of(self.shape)

    def marker(self, stage: str) -> StageMarker:
        """Returns the marker of a stage; raises InputError unless the stage is complete."""
        return StageMarkers(self.directory).complete(stage)

    def trained_from(self, *checkpoints: str) -> dict[str, object]:
        """Returns digests of what trained checkpoints were made from, as inputs of a stage.

        So a stage whose weights were trained again, with other settings, is not taken for done. The
        imported checkpoint is left out: its name says all.
        """
        digests = {
            name: json_sha256(self.marker(name).inputs) for name in checkpoints if name != BASE
        }
        return {"trained_from": digests}

    def found(self, search: str, length: int) -> RopeFactors:
        """Returns the factors that a search stage found for `length` tokens.

        Raises InputError unless that stage is complete.
        """
        factors = self.marker(search).result["factors"]
        return factors_from_json(factors, search).for_length(length)


@dataclass(frozen=True)
class Run(RunInputs):
    """The context that every stage of a run is given: its inputs, and the processes at work."""

    runtime: Runtime
    progress: Progress
    runner: StageRunner
    """Skips stages that are complete, and keeps their markers."""

    @property
    def hf_files(self) -> Path:
        """The folder with config and tokenizer of the imported model."""
        return hf_folder(self.directory.checkpoint(BASE))

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the imported model."""
        return load_tokenizer(self.hf_files)

    def load(self, checkpoint: str, purpose: Purpose = "scoring") -> LongRopeModel:
        """Returns the model in the run's checkpoint of that name; all ranks come here together."""
        recipe = self.recipe
        loaded = load_model(
            self.directory.checkpoint(checkpoint),
            self.runtime,
            dtype=TORCH_DTYPES[recipe.dtype],
            angle_precision=recipe.angle_precision,
            recompute=recipe.recompute,
            offload=recipe.offload,
            backend=recipe.backend if purpose == "training" else recipe.backend.for_scoring(),
            purpose=purpose,
        )
        return loaded.model

    def marker(self, stage: str) -> StageMarker:
        """Returns the marker of a complete stage, on all ranks as the main one reads it."""
        return self.runner.complete(stage)


def angle_inputs(angle_precision: AnglePrecision) -> dict[str, object]:
    """Returns the precision of angles as an input of a stage; nothing for the default.

    Markers written before it counted as an input do not name it, and mean the default.
    """
    default = Recipe.model_fields["angle_precision"].default
    return {} if angle_precision == default else {"angle_precision": angle_precision}


def backend_inputs(backend: BackendSettings) -> dict[str, object]:
    """Returns the engine settings that belong to a stage's fingerprint, as a person asked for them.

    What `auto` stands for may differ from machine to machine, and does not count as an input.
    """
    return {} if backend == BackendSettings() else {"backend": backend.model_dump(mode="json")}
