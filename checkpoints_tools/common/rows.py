"""Reads rows of Hugging Face weights in the order in which Megatron stores them."""

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
    """Fills `target` with rows of a whole Megatron weight, read straight from the HF files.

    Raises InputError where a number is not finite.

    Args:
        folder: the Hugging Face folder to read.
        rule: which HF weights make up the Megatron weight, of one layer.
        shape: sizes of the model.
        first: number of the first row wanted, among all rows of the Megatron weight.
        target: contiguous memory for as many rows as are wanted.
    """
    stop, at = first + target.shape[0], 0
    for source, start, rows in rule.row_runs(shape):
        low, high = max(at, first), min(at + rows, stop)
        if low < high:  # this run of HF rows [at, at + rows) overlaps the rows wanted
            part = target[low - first : high - first]
            if source is None:
                part.zero_()  # rows that pad the vocabulary
            else:
                folder.read_rows(rule.hf[source], start + low - at, part)
        at += rows
    if not is_finite(target):
        for name in rule.hf:
            folder.tensor(name)  # raises an error that names the weight with the bad number
        raise InputError("model", folder.path, f"{rule.hf[0]} changed while it was read")
