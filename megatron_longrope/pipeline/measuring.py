"""Everything that a run measures at its end: base model, extended model and control."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from megatron_longrope.artifacts.results import write_rows
from megatron_longrope.artifacts.rows import EXPORTED
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.data import TextTokenizer
from megatron_longrope.evaluation import TASKS, EvaluationDocument
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
    """Name of the checkpoint of the pretrained model."""
    extended: str
    """Name of the checkpoint that was trained last; the pretrained one where nothing is trained."""
    control: str | None
    """Name of the checkpoint that was trained as long at the old window; None without a control."""
    steps: list[RopeFactors]
    """The fine-tuned factors, if any, and those searched beyond them, ascending in length."""
    tuned: RopeFactors | None
    """The factors of the last fine-tuning; None where nothing is trained."""
    factor_set: FactorSet
    """The factors of the extended model, by input length."""
    first: RopeFactors
    """The factors that the first search found on the pretrained model."""
    first_ramp: RopeFactors | None = None
    """YaRN with the best ramp of the first search; None where that moved no ramp."""
    last_ramp: RopeFactors | None = None
    """The same of the last search, on top of the fine-tuned factors."""


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
    """Measures all models of a run, and returns the number of rows by file in evals/.

    The main rank writes the files: one per task, and one of perplexity by position.

    Args:
        models: The checkpoints and factors of the run.
        load: Loads the checkpoint of that name, on all ranks.
        documents: Held-out documents, of the longest length or longer.
        tokenizer: The tokenizer, for tasks that generate documents.
        recipe: The recipe, which names lengths and tasks.
        directory: The run directory.
        announce: Is called with what is measured next.
        is_main: Whether this rank writes the files.
    """
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
        _remove_others(directory, rows.files.keys())
        if not (recipe.export and recipe.evaluation.exported):  # else their own stage keeps them
            remove_exported_rows(directory)
    return {name: len(measured) for name, measured in rows.files.items()}


def _remove_others(directory: RunDirectory, measured: Collection[str]) -> None:
    """Removes rows that an earlier measurement left of tasks which are not in the recipe now.

    The report shows every file in evals/. Files with other names may be a person's own, and stay.
    """
    for name in TASKS.keys() - set(measured):
        directory.evaluation(name).unlink(missing_ok=True)


def remove_exported_rows(directory: RunDirectory) -> None:
    """Removes the rows of an export measured before, which may be of other weights."""
    for path in directory.evaluations.glob(f"{EXPORTED}-*.json"):
        path.unlink()


def _measure_base(evaluator: Evaluator, models: RunModels, recipe: Recipe) -> None:
    """Measures the model as it arrived: every method scaled to the first target, and no change.

    It also reads long documents through its own window, as the reference for the last quarter.
    Further tasks go up to the first target only, which suffices to show what it finds beyond its
    window.
    """
    own = evaluator.own
    target = models.first.target_length
    lengths = [length for length in recipe.evaluation.lengths if length <= target]
    evaluator.baselines(target, sorted({*lengths, target}), models.first)
    if models.first_ramp is not None:
        prefix = "" if own.tuned is None else "second-"
        name = f"{prefix}{models.first_ramp.origin.method}"
        evaluator.with_both_attention_factors(name, models.first_ramp, models.first)
    for length in recipe.evaluation.lengths:
        if length > target:
            evaluator.perplexity(own.label, own.factor_set, length)
    for length in sorted({models.steps[-1].target_length, target}):
        evaluator.announce(f"perplexity base inside its own window over {length}")
        evaluator.inside_own_window(length)
    evaluator.tasks(own.label, own.factor_set, up_to=target)


def _measure_extended(evaluator: Evaluator, models: RunModels, recipe: Recipe) -> None:
    """Measures the extended model at all lengths, beside other second interpolations."""
    for length in recipe.evaluation.lengths:
        evaluator.announce(f"perplexity extended at {length}")
        evaluator.perplexity("longrope", models.factor_set, length, "searched")
    last = models.steps[-1]
    if models.tuned is not None and last is not models.tuned:
        evaluator.second_interpolations(models.tuned, last, last.target_length)
        if models.last_ramp is not None:
            name = f"second-{models.last_ramp.origin.method}"
            evaluator.with_both_attention_factors(name, models.last_ramp, last)
    evaluator.tasks("longrope", models.factor_set, "searched")


def _short_lengths(recipe: Recipe, window: int) -> list[int]:
    return [length for length in recipe.evaluation.lengths if length <= window]


def write_baselines(models: RunModels, own: OwnScaling, directory: RunDirectory) -> None:
    """Writes the factors of other methods for every length of the run.

    The report shows them beside the searched ones, and `--method FILE` takes them. Where the model
    arrived scaled, the methods are on top of its own factors.
    """
    first = models.first.target_length
    scale = first / own.geometry.original_length
    for ramp in (models.first_ramp, models.last_ramp):
        if ramp is not None:
            write_factors(directory.factors(f"yarn-ramp-{ramp.target_length}"), ramp)
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
