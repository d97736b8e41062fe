"""The last stage, which writes `result.json` with its checks, and the HTML report."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_longrope.pipeline.measuring import write_baselines
from megatron_longrope.pipeline.result import write_result
from megatron_longrope.pipeline.run import Run, RunInputs
from megatron_longrope.pipeline.stages.combining import EXTENDED, RunParts
from megatron_longrope.pipeline.stages.stage import PLACES, Stage, checkpoint_path
from megatron_longrope.report import write_report


@dataclass(frozen=True)
class WriteResult(Stage):
    """Writes `result.json` and the HTML report, anew each time, as that takes seconds.

    The stage has no marker. It also writes the factors of other methods, to compare with.
    """

    kind = "report"
    parts: RunParts
    exported: bool
    """Whether the run exports, so that this stage comes after the export."""

    @property
    def does(self) -> str:
        """What the stage does."""
        return "write result.json with its checks, and the report"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The evaluation rows, and the checkpoints and factors that the result names."""
        export = (str(PLACES.export),) if self.exported else ()
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
        models = self.parts.models(run)
        if run.runtime.is_main:
            write_baselines(models, run.own, run.directory)
            write_result(
                run.recipe, run.directory, models, run.corpus, run.source, run.runner.records
            )
            write_report(run.directory.root)
        run.runtime.barrier()
        return {}
