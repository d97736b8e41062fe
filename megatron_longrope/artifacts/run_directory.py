"""The tree of a run directory.

config.yaml            the resolved recipe
stages/NAME.json       what a stage was made from, and that it is complete
data/                  training sets
checkpoints/NAME/      Megatron checkpoints; checkpoints/training/NAME while a stage trains
journals/NAME.jsonl    one line per evaluation of a search; journals/baselines/: of baselines
factors/NAME.json      factor sets
metrics.jsonl          a line per training step
evals/*.json           evaluation rows
export/                the Hugging Face checkpoint
report/index.html, result.json; report/convergence.png where `longrope search` ran
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes `values`, atomically and synced; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(values, stream, indent=1, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
