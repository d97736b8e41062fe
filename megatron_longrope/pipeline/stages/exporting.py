"""The stage that writes a Hugging Face folder, with the factors that its `longrope` can carry."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.hf.exporting import export_hf
from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.run import Run, RunInputs
from megatron_longrope.pipeline.stages.combining import EXTENDED, RunParts
from megatron_longrope.pipeline.stages.stage import PLACES, Stage, checkpoint_path
from megatron_longrope.rope import FactorRange, FactorSet, factors_to_json


@dataclass(frozen=True)
class ExportModel(Stage):
    """Writes the extended model as a Hugging Face folder that transformers loads as it is."""

    kind = "export"
    added_inputs = ("trained_from",)
    parts: RunParts

    @property
    def does(self) -> str:
        """What the stage does."""
        return "write the extended model as a Hugging Face folder"

    @property
    def checkpoint(self) -> str:
        """The checkpoint of the extended model."""
        return EXTENDED

    @property
    def inputs(self) -> tuple[str, ...]:
        """The extended checkpoint, and the factors in it."""
        return (checkpoint_path(EXTENDED), *self.parts.factor_paths)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The Hugging Face folder."""
        return (str(PLACES.export),)

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns the factors and the name of the weights."""
        factors = factors_to_json(self.parts.factor_set(run))
        weights = self.parts.weights
        return {"factors": factors, "checkpoint": weights, **run.trained_from(weights)}

    def work(self, run: Run) -> dict[str, object]:
        """Exports on the main rank; returns counts, and in words which factors are left out."""
        factor_set = self.parts.factor_set(run)
        carried, left_out = export_factor_set(factor_set, run.shape.context_length)
        for text in left_out:
            run.progress.stage(f"export: {text}")
        return on_main(run.runtime, lambda: _export(run, carried, left_out))


def _export(run: Run, carried: FactorSet, left_out: list[str]) -> dict[str, object]:
    extended = run.directory.checkpoint(EXTENDED)
    conversion = export_hf(extended, run.directory.export, carried)
    counts = {"tensors": conversion.num_tensors, "bytes": conversion.num_bytes}
    return {**counts, "left_out": left_out}


def export_factor_set(factor_set: FactorSet, window: int) -> tuple[FactorSet, list[str]]:
    """Returns the factors that transformers can carry, and in words those that are left out.

    The `longrope` of transformers knows two ranges, inputs up to `window` tokens and longer ones,
    and one attention_factor for both. So longer inputs get the factors of the longest range that
    has the attention factor of the short ones. Raises InputError where no range has.
    """
    short = factor_set.for_length(window)
    beyond = [
        entry.factors for entry in factor_set.ranges if entry.up_to is None or entry.up_to > window
    ]
    able = [factors for factors in beyond if factors.attention_factor == short.attention_factor]
    if not able:
        temperatures = ", ".join(f"{factors.attention_factor:g}" for factors in (short, *beyond))
        raise InputError(
            "export",
            temperatures,
            "transformers has one attention_factor for short and long inputs; search the other "
            "sets with `attention_factor: inherited`, or set `export: false`",
        )
    long = able[-1]
    left_out = [
        f"the factors for {format_length(factors.target_length)} (temperature "
        f"{factors.attention_factor:g}) are left out: transformers knows two sets and one "
        f"temperature, and gets those for {format_length(long.target_length)}"
        for factors in beyond
        if factors is not long
    ]
    carried = FactorSet(
        ranges=(FactorRange(up_to=window, factors=short), FactorRange(up_to=None, factors=long))
    )
    return carried, left_out
