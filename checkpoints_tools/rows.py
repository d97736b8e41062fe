"""Rows of an HF folder's weights in the order Megatron wants them, read straight to where they go."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from torch import Tensor

from checkpoints_tools.hf_folder import HfFolder
from checkpoints_tools.tensor_file import is_finite, read_into
from checkpoints_tools.weight_map import WeightRule
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape


class RowReader:
    """Keeps the folder's files open while it is used as a context."""

    def __init__(self, folder: HfFolder) -> None:
        self._folder = folder
        self._open: dict[Path, int] = {}

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:  # fmt: skip
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def read_megatron_rows(self, rule: WeightRule, shape: ModelShape, first: int, target: Tensor) -> None:
        """Fills `target` with the rows from `first` on of a whole Megatron weight; InputError if one is not finite."""
        stop, at = first + target.shape[0], 0
        for source, start, rows in rule.row_runs(shape):
            low, high = max(at, first), min(at + rows, stop)
            if low < high:
                part = target[low - first : high - first]
                if source is None:
                    part.zero_()
                else:
                    self.read_rows(rule.hf[source], start + low - at, part)
            at += rows
        if not is_finite(target):
            self._refuse(rule)

    def read_rows(self, name: str, first: int, target: Tensor) -> None:
        """Fills `target` with the rows from `first` on of an HF weight."""
        file, stored = self._folder.files[name], self._folder.stored[name]
        if file not in self._open:
            self._open[file] = os.open(file, os.O_RDONLY)
        read_into(self._open[file], stored.start + first * stored.row_bytes, target, file)

    def _refuse(self, rule: WeightRule) -> None:
        for name in rule.hf:
            self._folder.tensor(name)  # says which one holds it
        raise InputError("model", self._folder.path, f"{rule.hf[0]} changed while it was read")
