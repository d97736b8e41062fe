"""Everything a run measures once its factors are found: before, after, and beside the control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_longrope.artifacts.results import write_rows
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.data import TextTokenizer
from megatron_longrope.evaluation import EvaluationDocument
from megatron_longrope.model import LongRopeModel
from megatron_longrope.pipeline.evaluating import Evaluator, Measurements
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.searching import second_interpolation
from megatron_longrope.rope import (
    METHODS,
    FactorSet,
    OwnScaling,
    RopeFactors,
    write_factors,
)
from megatron_longrope.rope.methods.uses import default_second_interpolations


@dataclass(frozen=True)
class RunModels:
    """The checkpoints and factors of one run."""

    base: str
    extended: str
    control: str | None
    steps: list[RopeFactors]
    """The fine-tuned factors, if any, and those searched beyond, ascending in length."""
    tuned: RopeFactors | None
    factor_set: FactorSet
    first: RopeFactors
    """What the first search found on the pretrained model."""


def measure_run(
    models: RunModels,
    own: OwnScaling,
    load: Callable[[str], LongRopeModel],
    documents: Sequence[EvaluationDocument],
    tokenizer: TextTokenizer,
    recipe: Recipe,
    directory: RunDirectory,
    announce: Callable[[str], None],
    is_main: bool,
) -> dict[str, int]:
    """Writes a file of rows per task, and one of positions, on the main rank; returns how many rows
    each has."""
    rows = Measurements()

    def evaluator(name: str, checkpoint: str) -> Evaluator:
        return Evaluator(
            load(checkpoint), own, name, documents, tokenizer, recipe.evaluation, rows, announce
        )

    _measure_base(evaluator("base", models.base), models, recipe)
    _measure_extended(evaluator("extended", models.extended), models, recipe)
    if models.control:
        control = evaluator("control", models.control)
        for length in _short_lengths(recipe, control.window):
            control.perplexity(own.label, own.factor_set, length)
    if is_main:
        for name, measured in rows.files.items():
            write_rows(directory.evaluation(name), measured)
    return {name: len(measured) for name, measured in rows.files.items()}


def _measure_base(evaluator: Evaluator, models: RunModels, recipe: Recipe) -> None:
    """The model as it arrived: every method scaled to the first target, and itself inside its
    window.

    Other tasks up to the first target only: what it finds beyond its window is seen there.
    """
    own = evaluator.own
    target = models.first.target_length
    lengths = [length for length in recipe.evaluation.lengths if length <= target]
    evaluator.baselines(target, sorted({*lengths, target}), models.first)
    for length in recipe.evaluation.lengths:
        if length > target:
            evaluator.perplexity(own.label, own.factor_set, length)
    for length in sorted({models.steps[-1].target_length, target}):
        evaluator.announce(f"perplexity base inside its own window over {length}")
        evaluator.inside_own_window(length)
    evaluator.tasks(own.label, own.factor_set, up_to=target)


def _measure_extended(evaluator: Evaluator, models: RunModels, recipe: Recipe) -> None:
    """The extended model over all lengths, other second interpolations beside it."""
    for length in recipe.evaluation.lengths:
        evaluator.announce(f"perplexity extended at {length}")
        evaluator.perplexity("longrope", models.factor_set, length, "searched")
    last = models.steps[-1]
    if models.tuned is not None and last is not models.tuned:
        evaluator.second_interpolations(models.tuned, last, last.target_length)
    evaluator.tasks("longrope", models.factor_set, "searched")


def _short_lengths(recipe: Recipe, window: int) -> list[int]:
    return [length for length in recipe.evaluation.lengths if length <= window]


def write_baselines(models: RunModels, own: OwnScaling, directory: RunDirectory) -> None:
    """Writes the other methods' factors for every length of the run, for reports and for `--method
    FILE`; on top of the model's own where it arrived scaled."""
    first = models.first.target_length
    scale = first / own.geometry.original_length
    for name in default_second_interpolations():
        factors = (
            METHODS[name].from_scale(scale).factors(own.geometry)
            if own.tuned is None
            else second_interpolation(name, own.tuned, first)
        )
        write_factors(directory.factors(f"{name}-{first}"), factors)
        if models.tuned is not None:
            for step in models.steps[1:]:
                factors = second_interpolation(name, models.tuned, step.target_length)
                write_factors(directory.factors(f"{name}-{step.target_length}"), factors)
