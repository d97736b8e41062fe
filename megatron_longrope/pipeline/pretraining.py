"""What `longrope train` does: trains a fresh or a given model, and exports it to Hugging Face."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import NonNegativeInt, model_validator

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.initialize import Scheme, initialize_model
from checkpoints_tools.load_any import load_model, open_model
from data_prep.bpe import train_bpe
from data_prep.documents import TextDocument, tokenize
from data_prep.readers import read_text_files
from data_prep.stdlib_corpus import split as split_standard_library
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.config import StrictConfig, write_yaml
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape, check_shape
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.preflight.documents import check_enough
from megatron_longrope.pipeline.preflight.folder import check_writable
from megatron_longrope.pipeline.preflight.generated import check_mixed_in
from megatron_longrope.pipeline.preflight.place import at
from megatron_longrope.pipeline.preflight.training import check_rows
from megatron_longrope.pipeline.recipe import DtypeName, TrainingDataConfig
from megatron_longrope.pipeline.run import TORCH_DTYPES
from megatron_longrope.pipeline.stages.markers import StageMarkers, json_sha256
from megatron_longrope.pipeline.stages.packing import build_training_set
from megatron_longrope.pipeline.stages.runner import StageRunner
from megatron_longrope.pipeline.stages.training import ShowSteps, TrainingStage, train_model
from megatron_longrope.runtime import ParallelLayout, Runtime
from megatron_longrope.training import TrainingConfig

_ADDED_TO_DATA = ("texts",)
"""Inputs of the stage that packs rows which markers of earlier versions do not name."""


class InitializeConfig(StrictConfig):
    """A fresh model, with a byte-level BPE tokenizer that is trained on the documents."""

    shape: ModelShape
    """Sizes of the model; `vocab_size` is that of the tokenizer too."""
    scheme: Scheme = "normal"
    """How weights are drawn."""


class TrainRecipe(StrictConfig):
    """The recipe of one training."""

    name: str
    initialize: InitializeConfig | None = None
    """The fresh model to train; either this or `model`."""
    model: str | None = None
    """The model to train further, a Hugging Face folder or a Megatron checkpoint."""
    standard_library: bool = False
    """Train on the running Python's standard library, its held-out modules left out."""
    documents: tuple[str, ...] = ()
    """Text files to train on; either these or `standard_library`."""
    data: TrainingDataConfig
    training: TrainingConfig
    parallel: ParallelLayout = ParallelLayout()
    dtype: DtypeName = "float32"
    seed: NonNegativeInt = 1234

    @model_validator(mode="after")
    def _one_of_each(self) -> TrainRecipe:
        if (self.initialize is None) == (self.model is None):
            raise ValueError("give either initialize (a fresh model) or model (a folder)")
        if self.standard_library == bool(self.documents):
            raise ValueError("give either standard_library or documents")
        return self


def train_from_recipe(
    recipe: TrainRecipe,
    run_dir: Path,
    runtime: Runtime,
    announce: Callable[[str], None],
    show: ShowSteps,
) -> Path:
    """Runs a training recipe in `run_dir` and returns the Hugging Face folder that it leaves.

    The stages are: make or find the model, pack the rows, train, export. Complete ones are skipped.
    Raises InputError for bad input and for a run directory that was begun with other inputs.

    Args:
        recipe: The recipe.
        run_dir: The run directory.
        runtime: The processes; all of them come here together.
        announce: Is called with the stage that begins.
        show: Is called with the progress of the training.
    """
    directory = RunDirectory(run_dir)
    inputs = _check(recipe, directory, runtime)
    runtime.barrier()  # no rank writes before all have read
    if runtime.is_main:
        directory.root.mkdir(parents=True, exist_ok=True)
        write_yaml(recipe.model_dump(mode="json"), directory.config)
    stages = StageRunner(directory, runtime, announce)
    start = directory.root / "initial" if recipe.initialize else Path(recipe.model or "")
    stages.run(
        "initialize",
        inputs["initialize"],
        lambda: on_main(runtime, lambda: _initialize(recipe, start)),
    )
    loaded = load_model(start, runtime, dtype=TORCH_DTYPES[recipe.dtype], purpose="training")
    if loaded.tokenizer_file is None:
        raise InputError("model", start, "has no tokenizer.json to encode the documents with")
    tokenizer = load_tokenizer(loaded.tokenizer_file)
    data = directory.data("train")
    made = stages.run(
        "data",
        inputs["data"],
        lambda: on_main(runtime, lambda: _build_data(recipe, tokenizer, data, loaded.own.window)),
        _ADDED_TO_DATA,
    )
    stage = TrainingStage("train", recipe.training, data, directory, loaded.hf_files)
    stages.run(
        "train",
        {**inputs["train"], "data": made},
        lambda: train_model(stage, loaded.model, loaded.model.factor_set, show),
    )
    stages.run("export", {}, lambda: on_main(runtime, lambda: _export(directory)))
    return directory.export


def _check(
    recipe: TrainRecipe, directory: RunDirectory, runtime: Runtime
) -> dict[str, dict[str, object]]:
    """Makes every check that needs no weights, and returns the inputs of each stage by its name.

    Raises InputError for bad input, and where a stage was begun with other inputs.
    """
    training, layout = recipe.training, runtime.layout
    check_writable(directory.root)
    with at("training"):
        layout.check_batch(
            training.global_batch_size, training.micro_batch_size, runtime.data_parallel_size
        )
    check_rows("data", recipe.data)
    documents = _documents(recipe)
    if recipe.model is not None:
        folder = open_model(recipe.model)
        check_shape(layout, folder.shape)
        tokenizer = load_tokenizer(folder.tokenizer_file or folder.path)
        check_mixed_in("data", recipe.data, tokenizer)
        check_enough("", recipe.data, training, tokenize(documents, tokenizer))
    elif recipe.initialize is not None:
        check_shape(layout, recipe.initialize.shape)
    texts = json_sha256([document.sha256 for document in documents])
    inputs: dict[str, dict[str, object]] = {
        "initialize": {
            "recipe": recipe.model_dump(mode="json", include={"initialize", "model", "seed"})
        },
        "data": {
            **recipe.model_dump(mode="json", include={"data", "standard_library", "documents"}),
            "texts": texts,
        },
        "train": recipe.model_dump(mode="json", include={"training", "dtype", "parallel"}),
    }
    markers = StageMarkers(directory)
    markers.check("initialize", inputs["initialize"])
    made = markers.check("data", inputs["data"], _ADDED_TO_DATA)
    if made is not None:
        markers.check("train", {**inputs["train"], "data": made})
    return inputs


def _initialize(recipe: TrainRecipe, folder: Path) -> dict[str, object]:
    if recipe.initialize is None:
        return {"given": str(folder)}
    scratch = folder.with_name("tokenizer")
    train_bpe(
        [document.text for document in _documents(recipe)],
        recipe.initialize.shape.vocab_size,
        scratch,
    )
    initialize_model(
        recipe.initialize.shape, recipe.initialize.scheme, recipe.seed, folder, scratch
    )
    shutil.rmtree(scratch)
    return {"parameters": recipe.initialize.shape.num_parameters}


def _build_data(
    recipe: TrainRecipe, tokenizer: TextTokenizer, prefix: Path, window: int
) -> dict[str, object]:
    documents = tokenize(_documents(recipe), tokenizer)
    manifest = build_training_set(
        prefix, documents, tokenizer, recipe.data, window=window, seed=recipe.seed
    )
    return {"tokens": manifest.counts.tokens, "rows": manifest.counts.rows}


def _documents(recipe: TrainRecipe) -> list[TextDocument]:
    return (
        split_standard_library().train
        if recipe.standard_library
        else list(read_text_files(recipe.documents, "documents"))
    )


def _export(directory: RunDirectory) -> dict[str, object]:
    conversion = export_hf(directory.checkpoint("train"), directory.export)
    return {"tensors": conversion.num_tensors, "bytes": conversion.num_bytes}
