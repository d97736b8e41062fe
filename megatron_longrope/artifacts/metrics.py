"""Training metrics as JSON lines, one file that a resumed run goes on writing without a repeated
step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


class MetricsFile:
    """Appends `{"stage", "step", …}` lines. Lines of this stage after `resume_step` are taken back
    on opening:

    they belong to steps whose checkpoint was never written and that are about to be done again.
    """

    def __init__(self, path: Path, stage: str, resume_step: int = 0) -> None:
        self.path, self.stage = path, stage
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if not self._is_undone(line, resume_step)]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")

    def _is_undone(self, line: str, resume_step: int) -> bool:
        values = json.loads(line)
        return bool(values["stage"] == self.stage and values["step"] > resume_step)


def _lines(path: Path) -> list[str]:
    """Returns the whole lines of a file; a torn last line is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
