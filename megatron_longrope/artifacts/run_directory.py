"""The tree of a run directory, and the module of this room that holds each file's schema.

config.yaml            the resolved recipe
stages/NAME.json       stages: what a stage was made from, and that it is complete
data/                  training sets
checkpoints/NAME/      Megatron checkpoints; checkpoints/training/NAME while a stage trains
journals/NAME.jsonl    journal: a line per evaluation of a search; below it baselines/: of
                       baselines, held-out/: on held-out documents
factors/NAME.json      factors, factor_file: factor sets
metrics.jsonl          metrics: a line per training step
evals/*.json           rows, results: evaluation rows
export/                the Hugging Face checkpoint
report/index.html, report/convergence.png where `longrope search` ran
result.json            summaries: what a run, or one search, found
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """Names the places in a run directory."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def export(self) -> Path:
        return self.root / "export"

    def stage(self, name: str) -> Path:
        return self.root / "stages" / f"{name}.json"

    def data(self, name: str) -> Path:
        return self.root / "data" / name

    def checkpoint(self, name: str) -> Path:
        return self.root / "checkpoints" / name

    def training(self, name: str) -> Path:
        return self.root / "checkpoints" / "training" / name

    def journal(self, name: str) -> Path:
        return self.root / "journals" / f"{name}.jsonl"

    def factors(self, name: str) -> Path:
        return self.root / "factors" / f"{name}.json"

    @property
    def evaluations(self) -> Path:
        return self.root / "evals"

    def evaluation(self, name: str) -> Path:
        return self.evaluations / f"{name}.json"
