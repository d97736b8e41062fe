"""The first stage, which converts the Hugging Face model to a Megatron checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.hf.importing import import_hf
from megatron_longrope.pipeline.run import BASE, Run, RunInputs, hf_source
from megatron_longrope.pipeline.stages.stage import Stage, checkpoint_path


@dataclass(frozen=True)
class ImportModel(Stage):
    """Converts the recipe's model into `checkpoints/base`, bit for bit."""

    kind = "import"
    model: str

    @property
    def does(self) -> str:
        """What the stage does, with the name of the model."""
        return f"convert {self.model} into a Megatron checkpoint"

    @property
    def inputs(self) -> tuple[str, ...]:
        """No paths: the stage reads nothing in the run directory."""
        return ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The pretrained checkpoint."""
        return (checkpoint_path(BASE),)

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns the name of the model."""
        return {"model": self.model}

    def work(self, run: Run) -> dict[str, object]:
        """Converts the folder; returns how many tensors and bytes it holds."""
        conversion = import_hf(hf_source(run.recipe), run.directory.checkpoint(BASE), run.runtime)
        return {"tensors": conversion.num_tensors, "bytes": conversion.num_bytes}
