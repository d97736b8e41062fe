"""`result.json`: what a run found, in numbers, against the checks a good extension passes."""

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
from megatron_longrope.artifacts.summaries import HeldOut, ModelFacts, RunSummary
from megatron_longrope.pipeline.checks import run_checks
from megatron_longrope.pipeline.corpus import Corpus
from megatron_longrope.pipeline.measuring import RunModels
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.run import Source
from megatron_longrope.rope import FactorSet


@dataclass(frozen=True)
class RunResult:
    """Where a run left everything, and the factors it found for every input length."""

    directory: Path
    factor_set: FactorSet

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.directory / "report" / "index.html"

    @property
    def result_file(self) -> Path:
        """The numbers, as JSON."""
        return self.directory / "result.json"

    @property
    def hugging_face(self) -> Path:
        """The exported checkpoint, where the recipe asks for one."""
        return self.directory / "export"

    @property
    def megatron(self) -> Path:
        """The Megatron checkpoint with all factors in force."""
        return self.directory / "checkpoints" / "extended"


def write_result(
    recipe: Recipe,
    directory: RunDirectory,
    models: RunModels,
    corpus: Corpus,
    source: Source,
    stages: list[StageRecord],
) -> None:
    """Writes result.json from the evaluation rows."""
    rows = read_evaluations(directory.evaluations)
    shape, own = source.shape, source.own
    checks = run_checks(rows, recipe.evaluation.tasks, models, own.window)
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
