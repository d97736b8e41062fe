"""The tree of a run directory, and the module of this package that holds each file's schema.

config.yaml            the resolved recipe
stages/NAME.json       what a stage was made from, and whether it is complete (`stages`)
data/NAME/             training sets
checkpoints/NAME/      Megatron checkpoints; checkpoints/training/NAME while a stage trains
journals/NAME.jsonl    a line per evaluation of a search (`journal`); baselines/, held-out/: others
factors/NAME.json      factor sets (`factors`, `factor_file`)
metrics.jsonl          a line per training step (`metrics`)
evals/NAME.json        evaluation rows (`rows`, `results`)
export/                the Hugging Face checkpoint; export-static/: with one factor set
report/index.html      the report; beside it convergence.png where `longrope search` ran
result.json            what a run, or one search, found (`summaries`)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """The paths in the run directory `root`.

    >>> RunDirectory(Path("runs/demo")).journal("search-2048").as_posix()
    'runs/demo/journals/search-2048.jsonl'
    """

    root: Path

    @property
    def config(self) -> Path:
        """Path of the resolved recipe."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Path of the training metrics."""
        return self.root / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """Path of the result of the run or search."""
        return self.root / "result.json"

    @property
    def export(self) -> Path:
        """Path of the exported Hugging Face checkpoint, a folder."""
        return self.root / "export"

    @property
    def static_export(self) -> Path:
        """Path of the exported Hugging Face checkpoint with one factor set, a folder."""
        return self.root / "export-static"

    def stage(self, name: str) -> Path:
        """Returns the path of the marker of a stage."""
        return self.root / "stages" / f"{name}.json"

    def data(self, name: str) -> Path:
        """Returns the path of a training set, a folder."""
        return self.root / "data" / name

    def checkpoint(self, name: str) -> Path:
        """Returns the path of a finished Megatron checkpoint, a folder."""
        return self.root / "checkpoints" / name

    def training(self, name: str) -> Path:
        """Returns the path of the checkpoints of a stage that is still training, a folder."""
        return self.root / "checkpoints" / "training" / name

    def journal(self, name: str) -> Path:
        """Returns the path of the journal of a search."""
        return self.root / "journals" / f"{name}.jsonl"

    def factors(self, name: str) -> Path:
        """Returns the path of a factor set."""
        return self.root / "factors" / f"{name}.json"

    @property
    def evaluations(self) -> Path:
        return self.root / "evals"

    def evaluation(self, name: str) -> Path:
        return self.evaluations / f"{name}.json"
