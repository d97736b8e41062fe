"""The stage that joins all searched factors into the factor set of the extended model."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_longrope.model.checkpoints.checkpoint import save_checkpoint
from megatron_longrope.pipeline.evaluating import extended_factor_set
from megatron_longrope.pipeline.measuring import RunModels
from megatron_longrope.pipeline.recipe import ShortInputs
from megatron_longrope.pipeline.run import BASE, Run, RunInputs
from megatron_longrope.pipeline.searching import published_yarn, second_interpolation
from megatron_longrope.pipeline.stages.searching import Found
from megatron_longrope.pipeline.stages.stage import Stage, checkpoint_path, factors_path
from megatron_longrope.pipeline.stages.training import short_ranges
from megatron_longrope.rope import FactorSet, factors_to_json, write_factors

EXTENDED = "extended"
"""Name of the checkpoint and of the factor set of the extended model."""


@dataclass(frozen=True)
class RunParts:
    """What the extended model is made of: weights, and the searches its factors come from."""

    weights: str
    """Name of the checkpoint that was trained last, or of the pretrained one."""
    first: Found
    """The factors searched first, on the pretrained model."""
    tuned: Found | None
    """The factors that the weights were trained under last; None where nothing is trained."""
    steps: tuple[Found, ...]
    """`tuned`, where there is one, and those searched beyond it, ascending in length."""
    recovered: tuple[Found, ...] = ()
    """The factors for short inputs, each for inputs up to its length."""
    control: str | None = None
    """Name of the checkpoint that was trained as long without new factors."""
    short_inputs: ShortInputs = "extended"
    """Which factors the short rows of the last training had, where there was one."""

    @property
    def factor_paths(self) -> tuple[str, ...]:
        """Paths of the searched factors, relative to the run directory."""
        return tuple(factors_path(found.search) for found in (*self.steps, *self.recovered))

    def factor_set(self, run: RunInputs) -> FactorSet:
        """Returns the factors that serve each input length."""
        steps = [found.factors(run) for found in self.steps]
        recovered = [(found.length, found.factors(run)) for found in self.recovered]
        # short inputs are served as they were trained: `tuned`, where there is one, comes first
        short = short_ranges(steps[0], self.short_inputs, run.own)
        return extended_factor_set(steps, recovered, short)

    def models(self, run: Run) -> RunModels:
        """Returns the checkpoints and factors in the form that measuring takes."""
        steps = [found.factors(run) for found in self.steps]
        tuned, last = steps[0] if self.tuned else None, self.steps[-1]
        first_yarn = published_yarn(run.own, self.first.length)
        last_ramp = None
        if tuned is not None and last != self.tuned:
            last_ramp = last.best_ramp(run, second_interpolation("yarn", tuned, last.length))
        # measuring tells by identity with `tuned` whether a step was searched beyond it
        return RunModels(
            BASE,
            self.weights,
            self.control,
            steps,
            tuned,
            self.factor_set(run),
            self.first.factors(run),
            self.first.best_ramp(run, first_yarn),
            last_ramp,
        )


@dataclass(frozen=True)
class CombineFactors(Stage):
    """Leaves `factors/extended.json`, and `checkpoints/extended` with the last weights."""

    kind = "combine"
    added_inputs = ("trained_from",)
    parts: RunParts

    @property
    def does(self) -> str:
        """What the stage does, with the number of factor sets."""
        count = len(self.parts.steps) + len(self.parts.recovered)
        return f"join {count} factor sets, each for its input lengths, with the last weights"

    @property
    def checkpoint(self) -> str:
        """The checkpoint whose weights the factors are joined with."""
        return self.parts.weights

    @property
    def inputs(self) -> tuple[str, ...]:
        """The checkpoint and the searched factors."""
        return (checkpoint_path(self.parts.weights), *self.parts.factor_paths)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The factor set, and the checkpoint that carries it."""
        return (factors_path(EXTENDED), checkpoint_path(EXTENDED))

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns the factors and the name of the weights."""
        factors = factors_to_json(self.parts.factor_set(run))
        weights = self.parts.weights
        return {"factors": factors, "checkpoint": weights, **run.trained_from(weights)}

    def work(self, run: Run) -> dict[str, object]:
        """Saves the model with the whole factor set; the marker keeps nothing."""
        model, factor_set = run.load(self.parts.weights), self.parts.factor_set(run)
        model.set_factors(factor_set)
        save_checkpoint(model, run.directory.checkpoint(EXTENDED), hf_files=run.hf_files)
        if run.runtime.is_main:
            write_factors(run.directory.factors(EXTENDED), factor_set)
        return {}
