"""The stage that measures the pretrained model, the extended one and the control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_longrope.config import format_length
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.pipeline.measuring import measure_run
from megatron_longrope.pipeline.run import BASE, Run, RunInputs, angle_inputs
from megatron_longrope.pipeline.stages.combining import RunParts
from megatron_longrope.pipeline.stages.evaluation_cost import cost_of_measuring
from megatron_longrope.pipeline.stages.stage import (
    PLACES,
    Cost,
    Stage,
    checkpoint_path,
    factors_path,
)
from megatron_longrope.rope import OwnScaling, factors_to_json


@dataclass(frozen=True)
class MeasureModels(Stage):
    """Measures every model of the run at every length of the recipe."""

    kind = "evaluate"
    added_inputs = ("dtype", "backend", "trained_from")
    parts: RunParts
    config: EvaluationConfig
    shape: ModelShape
    own: OwnScaling
    """The scaling that the model of the run arrived with."""

    @property
    def does(self) -> str:
        """What the stage does, with tasks and lengths."""
        lengths = ", ".join(format_length(length) for length in self.config.lengths)
        tasks = " and ".join(["perplexity", *self.config.tasks])
        return f"measure {tasks} before and after, at {lengths}"

    @property
    def checkpoint(self) -> str:
        """The extended weights; those of the base and of the control are loaded as well."""
        return self.parts.weights

    @property
    def inputs(self) -> tuple[str, ...]:
        """The checkpoints measured, and the searched factors."""
        control = (self.parts.control,) if self.parts.control else ()
        weights = dict.fromkeys((BASE, self.parts.weights, *control))
        factors = dict.fromkeys((factors_path(self.parts.first.search), *self.parts.factor_paths))
        return (*(checkpoint_path(name) for name in weights), *factors)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The folder of evaluation rows."""
        return (str(PLACES.evaluations),)

    @property
    def cost(self) -> Cost:
        """The tokens of all measurements."""
        return cost_of_measuring(self.config, self.parts, self.shape, self.own)

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns settings, factors, weights, documents, precision and engine."""
        control = (self.parts.control,) if self.parts.control else ()
        backend = run.recipe.backend.for_scoring()
        return {
            # `exported` is another stage's: to limit or leave out that one is no other input here
            "evaluation": self.config.model_dump(mode="json", exclude={"exported"}),
            "factors": factors_to_json(self.parts.factor_set(run)),
            "checkpoint": self.parts.weights,
            **run.trained_from(self.parts.weights, *control),
            "held_out": run.corpus.held_out_sha256,
            "dtype": run.recipe.dtype,
            **angle_inputs(run.recipe.angle_precision),
            "backend": backend.model_dump(mode="json", exclude_defaults=True),
        }

    def work(self, run: Run) -> Mapping[str, object]:
        """Measures all models; returns the number of rows in each file."""
        return measure_run(
            self.parts.models(run),
            self.own,
            run.load,
            run.corpus.held_out,
            run.tokenizer,
            run.recipe,
            run.directory,
            run.progress.stage,
            run.runtime.is_main,
        )
