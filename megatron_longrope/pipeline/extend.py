"""The whole method in one run directory, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.load_any import find_model, load_model
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.config import format_length, write_yaml
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import documents_sha256
from megatron_longrope.model import LongRopeModel
from megatron_longrope.model.checkpoints.checkpoint import save_checkpoint
from megatron_longrope.model.engine.settings import BackendSettings, Purpose
from megatron_longrope.pipeline.corpus import Corpus, load_corpus
from megatron_longrope.pipeline.evaluating import extended_factor_set
from megatron_longrope.pipeline.exporting import export_factor_set
from megatron_longrope.pipeline.fine_tuning import TrainingStage, train_model, training_factors
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.measuring import RunModels, measure_run, write_baselines
from megatron_longrope.pipeline.recipe import ExtensionStep, FineTuneConfig, Recipe, SearchConfig
from megatron_longrope.pipeline.result import RunResult, write_result
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    first_search,
    recovery_search,
    search_cost,
    search_factors,
    search_name,
    search_objective,
    second_search,
)
from megatron_longrope.pipeline.stages import StageRunner
from megatron_longrope.pipeline.training_data import build_training_set
from megatron_longrope.pipeline.types import TORCH_DTYPES, Progress
from megatron_longrope.presets import model_path
from megatron_longrope.report import write_report
from megatron_longrope.rope import (
    FactorSet,
    RopeFactors,
    factors_from_json,
    factors_to_json,
    read_factors,
    write_factors,
)
from megatron_longrope.runtime import Runtime


@dataclass
class Extension:
    """One run of a recipe. `run()` does all stages; each finds what the ones before it left in the
    run directory."""

    recipe: Recipe
    directory: RunDirectory
    runtime: Runtime
    progress: Progress

    def __post_init__(self) -> None:
        self.stages = StageRunner(self.directory, self.runtime, self.progress.stage)

    def run(self) -> RunResult:
        """Returns the result. Raises InputError for bad input, and where inputs changed since the
        run began."""
        recipe, directory = self.recipe, self.directory
        if self.runtime.is_main:
            directory.root.mkdir(parents=True, exist_ok=True)
            write_yaml(recipe.model_dump(mode="json"), directory.config)
        source = model_path(recipe.model)
        self.stages.run("import", {"model": recipe.model}, lambda: self._import(source))
        self.model = self._load("base")
        self.geometry = self.model.geometry
        self._check_layout()
        self.tokenizer = self._tokenizer()
        self.corpus = load_corpus(recipe.corpus, self.tokenizer, recipe.target_length)
        tuned, current = self._extend_with_training()
        steps = (
            [tuned, *self._extend_without(tuned, current)]
            if tuned
            else self._extend_without(None, "base")
        )
        recovered = [
            (step.length, self._recover(step, tuned or steps[-1], current))
            for step in recipe.recovery
        ]
        factor_set = extended_factor_set(steps, recovered)
        self._keep_factors(factor_set, current)
        control = (
            "control"
            if any(s.fine_tune and s.fine_tune.control for s in recipe.extension)
            else None
        )
        models = RunModels(
            "base", current, control, steps, tuned, factor_set, self._first_searched()
        )
        self.stages.run(
            "evaluate", self._evaluation_inputs(factor_set, current), lambda: self._measure(models)
        )
        if recipe.export:
            self.stages.run(
                "export",
                {"factors": factors_to_json(factor_set), "checkpoint": current},
                lambda: self._export(factor_set),
            )
        return self._finish(models)

    # -- stages

    def _import(self, source: Path) -> dict[str, Any]:
        kind, folder = find_model(source)
        if kind != "hf":
            raise InputError(
                "model", source, "an extension starts from a Hugging Face folder; export it first"
            )
        conversion = import_hf(folder, self.directory.checkpoint("base"), self.runtime)
        return {"tensors": conversion.num_tensors, "bytes": conversion.num_bytes}

    def _extend_with_training(self) -> tuple[RopeFactors | None, str]:
        """The steps that fine-tune: all are searched on the pretrained model, then trained one
        after the other."""
        steps = [step for step in self.recipe.extension if step.fine_tune is not None]
        found = [
            (
                step,
                self._search(
                    first_search(step.search, self.geometry, step.length), step.search, "base"
                ),
            )
            for step in steps
        ]
        current, tuned = "base", None
        for step, factors in found:
            assert step.fine_tune is not None
            name = f"fine-tune-{step.length}"
            self._fine_tune(name, step, step.fine_tune, current, factors)
            current, tuned = name, factors
        return tuned, current

    def _extend_without(self, tuned: RopeFactors | None, current: str) -> list[RopeFactors]:
        """The steps beyond the fine-tuned length, or all of them where nothing is fine-tuned."""
        found = []
        for step in self.recipe.extension:
            if step.fine_tune is None:
                problem = (
                    second_search(step.search, self.geometry, step.length, tuned)
                    if tuned
                    else first_search(step.search, self.geometry, step.length)
                )
                found.append(self._search(problem, step.search, current))
        return found

    def _recover(self, step: Any, tuned: RopeFactors, current: str) -> RopeFactors:
        problem = recovery_search(step.search, self.geometry, step.length, tuned, step.upper)
        return self._search(problem, step.search, current)

    def _search(self, problem: SearchProblem, config: SearchConfig, checkpoint: str) -> RopeFactors:
        documents = self.corpus.search[: config.num_documents]
        identity = documents_sha256(documents)
        inputs = {
            "search": config.model_dump(mode="json"),
            "space": problem.space.to_json(),
            "length": problem.length,
            "documents": identity,
            "checkpoint": checkpoint,
            "dtype": self.recipe.dtype,
            **self._backend_inputs(self.recipe.backend.for_scoring()),
        }

        def work() -> dict[str, Any]:
            model = self._load(checkpoint)
            objective = search_objective(model, documents, self.tokenizer, config, problem.length)
            show = self.progress.search(problem.name)
            factors, outcome = search_factors(
                problem, objective, config, self.directory, identity, show
            )
            cost = search_cost(outcome.entries, model.shape, problem.length)
            return {
                "factors": factors_to_json(factors),
                **cost.model_dump(),
                "stopped_early": outcome.stopped_early,
                "perplexity": outcome.evaluation.perplexity,
            }

        result = self.stages.run(problem.name, inputs, work)
        return factors_from_json(result["factors"], problem.name).for_length(problem.length)

    def _fine_tune(
        self,
        name: str,
        step: ExtensionStep,
        config: FineTuneConfig,
        current: str,
        factors: RopeFactors,
    ) -> None:
        trained = training_factors(factors, config.short_inputs)
        self._train(name, config, current, trained, max_piece=None)
        if config.control:
            unscaled = self.model.factor_set
            self._train(
                "control", config, "base", unscaled, max_piece=self.geometry.original_length
            )

    def _train(
        self,
        name: str,
        config: FineTuneConfig,
        start: str,
        factors: FactorSet | RopeFactors,
        max_piece: int | None,
    ) -> None:
        prefix = self.directory.data(name)
        inputs = {
            **config.model_dump(mode="json"),
            "documents": documents_sha256_of(self.corpus),
            "max_piece": max_piece,
            "seed": self.recipe.seed,
        }

        def build() -> dict[str, Any]:
            manifest = build_training_set(
                prefix,
                self.corpus.train,
                self.tokenizer,
                config.data,
                window=self.geometry.original_length,
                max_piece=max_piece,
                short_rows=config.short_inputs != "extended",
                seed=self.recipe.seed,
            )
            return {"rows": manifest.counts.rows, "tokens": manifest.counts.tokens}

        made = self.stages.run(f"data-{name}", inputs, lambda: on_main(self.runtime, build))
        train_inputs = {
            "training": config.training.model_dump(mode="json"),
            "start": start,
            "data": made,
            "dtype": self.recipe.dtype,
            "factors": factors_to_json(factors),
            "merge": config.merge,
            **self._backend_inputs(self.recipe.backend),
        }

        def work() -> dict[str, Any]:
            model = self._load(start, "training")
            files = self.directory.checkpoint("base") / "hf"
            stage = TrainingStage(
                name, config.training, prefix, self.directory, files, config.merge
            )
            return train_model(stage, model, factors, self.progress.training(name))

        self.stages.run(name, train_inputs, work)

    def _measure(self, models: RunModels) -> dict[str, Any]:
        return measure_run(
            models,
            self._load,
            self.corpus.held_out,
            self.tokenizer,
            self.recipe,
            self.directory,
            self.progress.stage,
            self.runtime.is_main,
        )

    def _export(self, factor_set: FactorSet) -> dict[str, Any]:
        carried, left_out = export_factor_set(factor_set, self.geometry.original_length)
        checkpoint = self.directory.checkpoint("extended")

        def work() -> dict[str, Any]:
            conversion = export_hf(checkpoint, self.directory.export, carried)
            return {
                "tensors": conversion.num_tensors,
                "bytes": conversion.num_bytes,
                "left_out": left_out,
            }

        for text in left_out:
            self.progress.stage(f"export: {text}")
        return dict(on_main(self.runtime, work))

    def _finish(self, models: RunModels) -> RunResult:
        result = RunResult(self.directory.root, models.factor_set)
        if self.runtime.is_main:
            write_baselines(models, self.geometry, self.directory)
            write_result(
                self.recipe, self.directory, models, self.corpus, self.model, self.stages.records
            )
            write_report(self.directory.root)
        self.runtime.barrier()
        return result

    # -- what stages share

    def _load(self, checkpoint: str, purpose: Purpose = "scoring") -> LongRopeModel:
        dtype: torch.dtype = TORCH_DTYPES[self.recipe.dtype]
        backend = (
            self.recipe.backend if purpose == "training" else self.recipe.backend.for_scoring()
        )
        loaded = load_model(
            self.directory.checkpoint(checkpoint),
            self.runtime,
            dtype=dtype,
            angle_precision=self.recipe.angle_precision,
            recompute=self.recipe.recompute,
            offload=self.recipe.offload,
            backend=backend,
            purpose=purpose,
        )
        return loaded.model

    def _backend_inputs(self, backend: BackendSettings) -> dict[str, Any]:
        """What of the engine belongs to a stage's inputs: what a person asked for; `auto` may
        differ by machine."""
        return {} if backend == BackendSettings() else {"backend": backend.model_dump(mode="json")}

    def _tokenizer(self) -> TextTokenizer:
        return load_tokenizer(self.directory.checkpoint("base") / "hf")

    def _check_layout(self) -> None:
        """Refuses what a later stage would refuse, before hours go into the ones before it."""
        window, layout = self.geometry.original_length, self.runtime.layout
        for step in self.recipe.extension:
            layout.check_sequence(step.length)
            if step.fine_tune is not None:
                training = step.fine_tune.training
                layout.check_batch(
                    training.global_batch_size,
                    training.micro_batch_size,
                    self.runtime.data_parallel_size,
                )
            if step.length <= window:
                rule = f"a target must exceed the model's window of {format_length(window)} tokens"
                raise InputError("extension.length", format_length(step.length), rule)

    def _keep_factors(self, factor_set: FactorSet, current: str) -> None:
        """Leaves `factors/extended.json`, and `checkpoints/extended`: the last weights with the
        whole set in force."""

        def work() -> dict[str, Any]:
            model = self._load(current)
            model.set_factors(factor_set)
            save_checkpoint(
                model,
                self.directory.checkpoint("extended"),
                hf_files=self.directory.checkpoint("base") / "hf",
            )
            if self.runtime.is_main:
                write_factors(self.directory.factors("extended"), factor_set)
            return {}

        self.stages.run(
            "extended", {"factors": factors_to_json(factor_set), "checkpoint": current}, work
        )

    def _first_searched(self) -> RopeFactors:
        """The factors found on the pretrained model for the first length."""
        first = self.recipe.extension[0]
        name = search_name(first.length, first.search)
        return read_factors(self.directory.factors(name)).for_length(first.length)

    def _evaluation_inputs(self, factor_set: FactorSet, current: str) -> dict[str, Any]:
        return {
            "evaluation": self.recipe.evaluation.model_dump(mode="json"),
            "factors": factors_to_json(factor_set),
            "checkpoint": current,
            "held_out": self.corpus.held_out_sha256,
        }


def documents_sha256_of(corpus: Corpus) -> object:
    """Returns what identifies the training documents."""
    return corpus.identity()["train"]


def run_recipe(recipe: Recipe, run_dir: Path, runtime: Runtime, progress: Progress) -> RunResult:
    """Runs a recipe in `run_dir` on the processes of `runtime`; see Extension."""
    return Extension(recipe, RunDirectory(run_dir), runtime, progress).run()
