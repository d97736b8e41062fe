"""The base class of stages: what a stage reads, leaves and costs, and how it is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, TypedDict

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.pipeline.run import Run, RunInputs

PLACES = RunDirectory(Path())
"""Paths of a run, relative to the run directory."""


@dataclass(frozen=True)
class Cost:
    """The most that a stage can cost: searches are counted as if without early stopping."""

    evaluations: int | None = None
    """Candidates that a search scores; None for other stages."""
    tokens: int = 0
    """Tokens that go through the model forward."""
    backward_tokens: int = 0
    """Tokens, out of these, that go through it backward as well."""
    flops: float = 0.0
    """Floating-point operations in all."""


class StageJson(TypedDict):
    """A stage as `longrope extend --dry-run --json` lists it."""

    name: str
    kind: str
    does: str
    checkpoint: str | None
    inputs: list[str]
    outputs: list[str]
    cost: dict[str, float | None]


@dataclass(frozen=True)
class Stage(ABC):
    """One stage of a run. `run` does it, or skips it where its marker says that it is complete.

    A stage takes everything from the recipe and from what earlier stages left in the run directory,
    so that each may run in a process of its own.
    """

    name: str
    """The name of the stage, and of its marker, `stages/NAME.json`."""
    kind: ClassVar[str]
    """What sort of stage this is, such as `search` or `train`."""
    added_inputs: ClassVar[tuple[str, ...]] = ()
    """Keys of the fingerprint that markers of earlier versions do not have: such a marker says
    nothing of them, and stays valid."""

    @property
    @abstractmethod
    def does(self) -> str:
        """What the stage does, in one line."""

    @property
    def checkpoint(self) -> str | None:
        """Name of the checkpoint whose weights the stage loads; None where it loads none."""
        return None

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Paths that the stage reads, relative to the run directory."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Paths that the stage leaves, relative to the run directory."""

    @property
    def cost(self) -> Cost:
        """The most that the stage's use of the model can cost."""
        return Cost()

    @abstractmethod
    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns the JSON values that the stage's result depends on.

        A stage that was begun with other values is refused.
        """

    @abstractmethod
    def work(self, run: Run) -> Mapping[str, object]:
        """Does the stage on all ranks and returns the JSON values that its marker keeps."""

    def run(self, run: Run) -> None:
        """Does or skips the stage; raises InputError that names an input which has changed."""
        run.runner.run(self.name, self.fingerprint(run), lambda: self.work(run), self.added_inputs)

    def require(self, run: Run) -> None:
        """Raises InputError unless the stage is complete and its inputs are the same as then."""
        run.runner.require(self.name, self.fingerprint(run), self.added_inputs)

    def to_json(self) -> StageJson:
        """Returns the stage as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "does": self.does,
            "checkpoint": self.checkpoint,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "cost": asdict(self.cost),
        }


def checkpoint_path(name: str) -> str:
    """Returns where a checkpoint lies, relative to the run directory."""
    return str(PLACES.checkpoint(name))


def factors_path(name: str) -> str:
    """Returns where a factor set lies, relative to the run directory."""
    return str(PLACES.factors(name))
