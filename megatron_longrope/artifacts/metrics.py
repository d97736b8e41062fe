"""Training metrics as JSON lines; a resumed run goes on in the same file and repeats no step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from megatron_longrope.artifacts.records import (
    Count,
    FileRecord,
    parse_line,
    read_json_lines,
    whole_lines,
)
from megatron_longrope.atomic import write_text_file


class MetricsRow(FileRecord):
    """One optimizer step of one training stage."""

    stage: str
    step: Count
    loss: float
    """Nats per token. It may be NaN, which the file holds as NaN, so that divergence is seen."""
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Learning rate."""
    tokens: Count | None = None
    """Tokens trained on so far."""
    grad_norm: float | None = None
    """Norm of the gradient before clipping."""
    seconds: float | None = None
    """Wall time of the step."""
    skipped: Count | None = None
    """Number of updates skipped so far because a gradient was not finite; None: none.

    In such a step `grad_norm` is not finite.
    """


class MetricsFile:
    """The metrics file of one training stage, to which one line is appended per step.

    When it is opened, lines of the stage after `resume_step` are removed. They belong to steps
    after the last checkpoint, which are about to be done again.
    """

    def __init__(self, path: Path, stage: str, resume_step: int = 0) -> None:
        self.path, self.stage = path, stage
        lines = whole_lines(path) if path.exists() else []
        kept = [
            line
            for number, line in enumerate(lines, start=1)
            if not self._is_undone(parse_line(line, number, MetricsRow, path), resume_step)
        ]
        write_text_file(path, "".join(f"{line}\n" for line in kept))

    def write(self, row: MetricsRow) -> None:
        """Appends one line, without the values that are None."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row.model_dump(exclude_none=True)) + "\n")

    def _is_undone(self, row: MetricsRow, resume_step: int) -> bool:
        return row.stage == self.stage and row.step > resume_step


def read_metrics(path: Path) -> list[MetricsRow]:
    """Returns the steps in `path` in the order written; raises InputError for a damaged file."""
    return read_json_lines(path, MetricsRow)
