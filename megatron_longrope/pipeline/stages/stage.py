"""A stage of a run as a value: what it reads, leaves and costs, and how it is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, TypedDict

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.pipeline.run import Run

PLACES = RunDirectory(Path())
"""Names places relative to the run directory."""


@dataclass(frozen=True)
class Cost:
    """What a stage takes at most: searches are counted without early stopping.

    `evaluations` are those of a search. `tokens` go through the model forward, `backward_tokens` of
    them backward too; `flops` are floating-point operations.
    """

    evaluations: int | None = None
    tokens: int = 0
    backward_tokens: int = 0
    flops: float = 0.0


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

    A stage gets all it needs from the recipe and from what earlier stages left in the run
    directory, so that each may run in a process of its own.
    """

    name: str
    """Also the name of its marker, `stages/NAME.json`."""
    kind: ClassVar[str]

    @property
    @abstractmethod
    def does(self) -> str:
        """What the stage does, in one line."""

    @property
    def checkpoint(self) -> str | None:
        """Name of the checkpoint whose weights the stage loads; None: of none."""
        return None

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Paths the stage reads, relative to the run directory."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Paths the stage leaves, relative to the run directory."""

    @property
    def cost(self) -> Cost:
        """What the stage takes at most, so far as it runs the model."""
        return Cost()

    @abstractmethod
    def fingerprint(self, run: Run) -> dict[str, object]:
        """Returns the JSON values the stage's result depends on; changed, the stage is refused."""

    @abstractmethod
    def work(self, run: Run) -> Mapping[str, object]:
        """Does the stage on all ranks and returns what its marker keeps, as JSON values."""

    def run(self, run: Run) -> None:
        """Does the stage, or skips it; raises InputError that names an input which changed."""
        run.runner.run(self.name, self.fingerprint(run), lambda: self.work(run))

    def require(self, run: Run) -> None:
        """Raises InputError unless the stage is complete and its inputs are as they were."""
        run.runner.require(self.name, self.fingerprint(run))

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
