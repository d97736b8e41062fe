"""The last stage, which writes `result.json` with its checks, and the HTML report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_longrope.artifacts.summaries import ExportSummary
from megatron_longrope.pipeline.measuring import write_baselines
from megatron_longrope.pipeline.result import write_result
from megatron_longrope.pipeline.run import Run, RunInputs
from megatron_longrope.pipeline.stages.combining import EXTENDED, RunParts
from megatron_longrope.pipeline.stages.stage import PLACES, Stage, checkpoint_path


@dataclass(frozen=True)
class WriteResult(Stage):
    """Writes `result.json` and the HTML report, anew each time, as that takes seconds.

    The stage has no marker. It also writes the factors of other methods, to compare with.
    """

    kind = "report"
    parts: RunParts
    exporting: tuple[str, ...] = ()
    """Names of the stages that export and that measure the export, which this one comes after."""

    @property
    def does(self) -> str:
        """What the stage does."""
        return "write result.json with its checks, and the report"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The evaluation rows, and the checkpoints and factors that the result names."""
        export = (str(PLACES.export),) if self.exporting else ()
        rows = str(PLACES.evaluations)
        return (rows, checkpoint_path(EXTENDED), *export, *self.parts.factor_paths)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The result and the report."""
        return (str(PLACES.result), "report/index.html")

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns no inputs: this stage is never skipped."""
        return {}

    def run(self, run: Run) -> None:
        """Does the stage, whether it was done before or not."""
        run.progress.stage(self.name)
        self.work(run)

    def require(self, run: Run) -> None:
        """Requires nothing: no stage comes after this one."""

    def work(self, run: Run) -> dict[str, object]:
        """Writes the files on the main rank."""
        from megatron_longrope.report import (
            write_report,  # brings matplotlib: seconds at each start
        )

        models, export = self.parts.models(run), self._export(run)
        if run.runtime.is_main:
            write_baselines(models, run.own, run.directory)
            write_result(
                run.recipe,
                run.directory,
                models,
                run.corpus,
                run.source,
                run.runner.records,
                export,
            )
            write_report(run.directory.root)
        run.runtime.barrier()
        return {}

    def _export(self, run: Run) -> ExportSummary | None:
        """Returns what the stages that export have left; None without an export."""
        if not self.exporting:
            return None
        found = dict[str, Any](
            item for name in self.exporting for item in run.marker(name).result.items()
        )
        static = run.directory.static_export
        return ExportSummary(
            folder=str(PLACES.export),
            static_folder=str(PLACES.static_export) if static.is_dir() else None,
            left_behind=tuple(found.get("left_behind", ())),
            compared_length=found.get("compared_length"),
            largest_difference=found.get("largest_difference"),
        )
