"""Writes `result.json`: what a run found, in numbers, and which checks it meets."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from megatron_longrope.artifacts.records import write_record
from megatron_longrope.artifacts.results import read_evaluations
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.stages import StageRecord
from megatron_longrope.artifacts.summaries import ExportSummary, HeldOut, ModelFacts, RunSummary
from megatron_longrope.pipeline.checks import run_checks
from megatron_longrope.pipeline.corpus import Corpus
from megatron_longrope.pipeline.measuring import RunModels
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.run import Source
from megatron_longrope.rope import FactorSet


@dataclass(frozen=True)
class RunResult:
    """Where a run left everything, and the factors that it found."""

    directory: Path
    """The run directory."""
    factor_set: FactorSet
    """The factors of the extended model, by input length."""
    left_behind: tuple[str, ...] = ()
    """In words, which inputs get other factors in `hugging_face` than in `factor_set`."""

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.directory / "report" / "index.html"

    @property
    def result_file(self) -> Path:
        """Path of result.json."""
        return self.directory / "result.json"

    @property
    def hugging_face(self) -> Path:
        """Path of the exported Hugging Face folder, which is there if the recipe has `export`."""
        return RunDirectory(self.directory).export

    @property
    def hugging_face_static(self) -> Path:
        """Path of the export with one factor set, for engines that choose a set once."""
        return RunDirectory(self.directory).static_export

    @property
    def megatron(self) -> Path:
        """Path of the Megatron checkpoint that carries the factors for all input lengths."""
        return self.directory / "checkpoints" / "extended"


def write_result(
    recipe: Recipe,
    directory: RunDirectory,
    models: RunModels,
    corpus: Corpus,
    source: Source,
    stages: list[StageRecord],
    export: ExportSummary | None,
) -> None:
    """Writes result.json from the rows in evals/.

    Args:
        recipe: The recipe of the run.
        directory: The run directory.
        models: The checkpoints and factors of the run.
        corpus: The documents of the run.
        source: The model that the run started from.
        stages: What each stage took, and whether it was skipped.
        export: The exported folders; None without an export.
    """
    rows = read_evaluations(directory.evaluations)
    shape, own = source.shape, source.own
    checks = run_checks(rows, recipe.evaluation.tasks, models, own.window, export)
    held_out = corpus.held_out[: recipe.evaluation.num_documents]
    summary = RunSummary(
        format=1,
        checkpoint="checkpoints/extended",
        model=ModelFacts(
            name=recipe.model,
            parameters=shape.num_parameters,
            original_length=shape.context_length,
            window=own.window,
            scaling=own.describe() if own.is_scaled else None,
            num_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            num_heads=shape.num_heads,
            head_dim=shape.head_dim,
        ),
        target_length=recipe.target_length,
        stages=tuple(stages),
        checks=tuple(checks),
        held_out=HeldOut(
            sha256=corpus.held_out_sha256,
            documents=tuple(document.name for document in held_out),
        ),
        export=export,
        environment=_environment(),
        summary={check.text: check.value for check in checks},
    )
    write_record(directory.result, summary)


def _environment() -> dict[str, str | int | float | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "megatron_core": version("megatron-core"),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
