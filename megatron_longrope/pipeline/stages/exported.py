"""The stage that measures the exported folder as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.artifacts.results import write_rows
from megatron_longrope.artifacts.rows import EXPORTED, EvaluationLabels
from megatron_longrope.config import format_length
from megatron_longrope.evaluation import EvaluationDocument, rows_of_losses, token_losses
from megatron_longrope.evaluation.exported import ExportedModel, load_exported
from megatron_longrope.evaluation.tasks import TASKS, TaskInputs
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.evaluating import Measurements, bucket_tokens, stretches
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.pipeline.measuring import remove_exported_rows
from megatron_longrope.pipeline.run import TORCH_DTYPES, Run, RunInputs
from megatron_longrope.pipeline.searching import PASS_TOKENS
from megatron_longrope.pipeline.stages.combining import EXTENDED, RunParts
from megatron_longrope.pipeline.stages.evaluation_cost import cost_of_measuring_export
from megatron_longrope.pipeline.stages.exporting import export_factor_set
from megatron_longrope.pipeline.stages.stage import PLACES, Cost, Stage, checkpoint_path
from megatron_longrope.rope import FactorSet, factors_to_json

_LABELS = EvaluationLabels(EXPORTED, "longrope", "searched")


@dataclass(frozen=True)
class MeasureExport(Stage):
    """Measures the exported folder through transformers alone, and compares it with our model.

    A folder may hold other factors than the checkpoint, loses what its format cannot say, and is
    read by other code. So the product is measured itself, at the lengths that all else was.
    """

    kind = "evaluate"
    added_inputs = ("trained_from",)
    parts: RunParts
    config: EvaluationConfig
    shape: ModelShape

    @property
    def does(self) -> str:
        """What the stage does, with lengths."""
        lengths = ", ".join(format_length(length) for length in self.config.exported_lengths)
        return f"measure the exported folder through transformers, at {lengths}"

    @property
    def checkpoint(self) -> str:
        """The extended checkpoint, which the folder is compared with."""
        return EXTENDED

    @property
    def inputs(self) -> tuple[str, ...]:
        """The exported folder, and the checkpoint it was made from."""
        return (str(PLACES.export), checkpoint_path(EXTENDED), *self.parts.factor_paths)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The folder of evaluation rows."""
        return (str(PLACES.evaluations),)

    @property
    def cost(self) -> Cost:
        """The tokens of all measurements."""
        return cost_of_measuring_export(self.config, self.shape)

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns settings, factors, weights, documents and dtype."""
        return {
            "evaluation": self.config.model_dump(
                mode="json", include={"lengths", "num_documents", "tasks", "exported"}
            ),
            "factors": factors_to_json(self._carried(run)),
            "checkpoint": self.parts.weights,
            **run.trained_from(self.parts.weights),
            "held_out": run.corpus.held_out_sha256,
            "dtype": run.recipe.dtype,
        }

    def work(self, run: Run) -> Mapping[str, object]:
        """Measures the folder; returns counts of rows and how far losses are from our model's."""
        exported = load_exported(run.directory.export, run.runtime, TORCH_DTYPES[run.recipe.dtype])
        documents = run.corpus.held_out[: self.config.num_documents]
        rows, losses = Measurements(), {}
        for length in self.config.exported_lengths:
            run.progress.stage(f"perplexity as exported at {length}")
            losses[length] = self._perplexity(run, exported, documents, length, rows)
        self._tasks(run, exported, documents, rows)
        if run.runtime.is_main:
            remove_exported_rows(run.directory)
            for name, measured in rows.files.items():
                write_rows(run.directory.evaluation(f"{EXPORTED}-{name}"), measured)
        counts = {name: len(measured) for name, measured in rows.files.items()}
        return {"rows": counts, **self._compared(run, documents[0], losses)}

    def _perplexity(
        self,
        run: Run,
        exported: ExportedModel,
        documents: Sequence[EvaluationDocument],
        length: int,
        rows: Measurements,
    ) -> NDArray[np.float64]:
        """Adds rows at `length` tokens, and returns the losses of the first document."""
        chosen = stretches(documents, length)
        losses = exported.token_losses([document.prefix(length) for document in chosen])
        width = bucket_tokens(length, run.own.window)
        measured = rows_of_losses(chosen, losses, length, _LABELS, bucket_tokens=width)
        rows.add("perplexity", [*measured.rows, *measured.positions])
        return losses[0]

    def _tasks(
        self,
        run: Run,
        exported: ExportedModel,
        documents: Sequence[EvaluationDocument],
        rows: Measurements,
    ) -> None:
        """Adds the rows of every task that measures exports."""
        assert self.config.exported is not None
        for name, settings in self.config.tasks.items() if self.config.exported.tasks else ():
            task = TASKS[name]
            if not task.measures_exports:
                run.progress.stage(f"{name} does not measure exports, and is left out here")
                continue
            inputs = TaskInputs(
                exported,
                run.tokenizer,
                documents if task.needs_documents else (),
                run.tokenizer.document_prefix(),
                PASS_TOKENS,
            )
            for length in self.config.task_lengths(name):
                if length in self.config.exported_task_lengths(name):
                    run.progress.stage(f"{name} as exported at {length}")
                    rows.add(name, task.run(inputs, length, settings, _LABELS))

    def _compared(
        self, run: Run, document: EvaluationDocument, theirs: Mapping[int, NDArray[np.float64]]
    ) -> dict[str, object]:
        """Returns the largest difference in nats between a token's loss there and in our model.

        It is over the shortest and the longest length, which have factor sets of their own. Ours
        computes angles as transformers does, in float32. Nothing is compared in other dtypes, where
        rounding is larger than any mistake.
        """
        if run.recipe.dtype != "float32":
            return {"compared_length": None, "largest_difference": None}
        model = replace(run.load(EXTENDED), angle_precision="hf")
        model.set_factors(self._carried(run))
        lengths = sorted({min(theirs), max(theirs)})
        prefixes = [document.prefix(length) for length in lengths]
        ours = token_losses(model, prefixes, max_batch_tokens=PASS_TOKENS)
        largest = [
            float(np.abs(losses - theirs[length]).max())
            for length, losses in zip(lengths, ours, strict=True)
        ]
        # not Python's max, which may pass over a NaN
        return {"compared_length": lengths[-1], "largest_difference": float(np.max(largest))}

    def _carried(self, run: RunInputs) -> FactorSet:
        carried, _ = export_factor_set(self.parts.factor_set(run), run.shape.context_length)
        return carried
