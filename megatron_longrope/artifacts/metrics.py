"""Training metrics as JSON lines, one file that a resumed run goes on writing without a repeated
step."""

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
    """One optimizer step of one stage: `loss` in nats per token, `lr` the learning rate, `tokens`
    trained on so far, `grad_norm` before clipping, `seconds` of this step, `skipped` how many steps
    so far have left the weights as they were because a gradient was not finite (None: none has).

    The loss may be NaN, which the file says as NaN: a diverged run is reported, not hidden.
    `grad_norm` is not finite in a skipped step.
    """

    stage: str
    step: Count
    loss: float
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    tokens: Count | None = None
    grad_norm: float | None = None
    seconds: float | None = None
    skipped: Count | None = None


class MetricsFile:
    """Appends one line per step. Lines of this stage after `resume_step` are taken back on opening:
    they belong to steps whose checkpoint was never written and that are about to be done again.
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
        """Appends one line; values that are None are left out."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row.model_dump(exclude_none=True)) + "\n")

    def _is_undone(self, row: MetricsRow, resume_step: int) -> bool:
        return row.stage == self.stage and row.step > resume_step


def read_metrics(path: Path) -> list[MetricsRow]:
    """Returns the steps in `path` in the order written; raises InputError where it is damaged."""
    return read_json_lines(path, MetricsRow)
