"""Rows of an HF folder's weights in the order Megatron wants them, read straight to where they
go."""

from __future__ import annotations

from torch import Tensor

from checkpoints_tools.common.tensor_file import is_finite
from checkpoints_tools.hf.folder import HfFolder
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures.weights import WeightRule


def read_megatron_rows(
    folder: HfFolder, rule: WeightRule, shape: ModelShape, first: int, target: Tensor
) -> None:
    """Fills `target` with the rows from `first` on of a whole Megatron weight; InputError where one
    is not finite."""
    stop, at = first + target.shape[0], 0
    for source, start, rows in rule.row_runs(shape):
        low, high = max(at, first), min(at + rows, stop)
        if low < high:
            part = target[low - first : high - first]
            if source is None:
                part.zero_()
            else:
                folder.read_rows(rule.hf[source], start + low - at, part)
        at += rows
    if not is_finite(target):
        for name in rule.hf:
            folder.tensor(name)  # says which one holds it
        raise InputError("model", folder.path, f"{rule.hf[0]} changed while it was read")
