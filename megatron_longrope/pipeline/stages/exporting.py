"""The stage that writes Hugging Face folders, with the factors that `longrope` there can carry."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.static import export_static
from megatron_longrope.config import format_length
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.run import Run, RunInputs
from megatron_longrope.pipeline.stages.combining import EXTENDED, RunParts
from megatron_longrope.pipeline.stages.stage import PLACES, Stage, checkpoint_path
from megatron_longrope.rope import FactorRange, FactorSet, RopeFactors, factors_to_json


@dataclass(frozen=True)
class ExportModel(Stage):
    """Writes the extended model as Hugging Face folders, for engines of two kinds.

    `export/` holds a set for short inputs and one for long ones, between which transformers chooses
    by the length of the input. `export-static/` holds the long set alone, for engines that choose
    once, and links to the same weights.
    """

    kind = "export"
    added_inputs = ("trained_from",)
    parts: RunParts

    @property
    def does(self) -> str:
        """What the stage does."""
        return "write the extended model as a Hugging Face folder, and a static one"

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
        """The Hugging Face folders."""
        return (str(PLACES.export), str(PLACES.static_export))

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns the factors and the name of the weights."""
        factor_set, weights = self.parts.factor_set(run), self.parts.weights
        carried, _ = export_factor_set(factor_set, run.shape.context_length)
        return {
            "factors": factors_to_json(factor_set),
            "carried": factors_to_json(carried),
            "folders": [*self.outputs],
            "checkpoint": weights,
            **run.trained_from(weights),
        }

    def work(self, run: Run) -> dict[str, object]:
        """Exports on the main rank; returns counts, and in words what is left behind."""
        factor_set = self.parts.factor_set(run)
        carried, left_behind = export_factor_set(factor_set, run.shape.context_length)
        for text in left_behind:
            run.progress.stage(f"export: {text}")
        return on_main(run.runtime, lambda: _export(run, carried, left_behind))


def _export(run: Run, carried: FactorSet, left_behind: list[str]) -> dict[str, object]:
    extended, export = run.directory.checkpoint(EXTENDED), run.directory.export
    conversion = export_hf(extended, export, carried)
    export_static(export, run.directory.static_export, extended, carried)
    counts = {"tensors": conversion.num_tensors, "bytes": conversion.num_bytes}
    return {**counts, "left_behind": left_behind}


def export_factor_set(factor_set: FactorSet, window: int) -> tuple[FactorSet, list[str]]:
    """Returns the factors that transformers can carry, and in words what is left behind.

    The `longrope` of transformers knows two ranges, inputs up to `window` tokens and longer ones,
    and one attention factor for both. Longer inputs get the factors of the target, always: that is
    what the model was extended for. Short ones keep theirs where these have the same attention
    factor, and get those of the target otherwise.
    """
    long, short = factor_set.ranges[-1].factors, factor_set.for_length(window)
    if short.attention_factor != long.attention_factor:
        short = long
    ranges = [FactorRange(up_to=window, factors=short), FactorRange(up_to=None, factors=long)]
    carried = FactorSet(ranges=tuple(ranges if short is not long else ranges[1:]))
    return carried, _left_behind(factor_set, carried)


def _left_behind(factor_set: FactorSet, carried: FactorSet) -> list[str]:
    """Returns a text for each range of inputs that the export serves with other factors."""
    window, texts, start = factor_set.geometry.original_length, [], 1
    for entry in factor_set.ranges:
        end = entry.up_to or max(start, entry.factors.target_length)
        inside = start <= window < end
        for first, last in ((start, window), (window + 1, end)) if inside else ((start, end),):
            instead = carried.for_length(last)
            if instead != entry.factors:
                texts.append(
                    f"inputs of {format_length(first)} to {format_length(last)} tokens get the "
                    f"factors for {_described(instead)} instead of those for "
                    f"{_described(entry.factors)}: Hugging Face's format has two sets, which it "
                    "changes at the pretrained window, and one attention factor"
                )
        start = end + 1
    return texts


def _described(factors: RopeFactors) -> str:
    length = format_length(factors.target_length)
    return f"{length} (attention factor {factors.attention_factor:.4g})"
