"""A Megatron checkpoint's weights, checked against its description before any is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_tools.common.weight_map import bound_rules
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures.weights import WeightRule
from megatron_longrope.model.checkpoints.checkpoint import CheckpointDescription
from megatron_longrope.model.checkpoints.stored_tensors import StoredTensors

_MODEL_PARTS = ("embedding.", "decoder.", "output_layer.", "encoder.", "mtp.")


@dataclass
class StoredWeights:
    """The weights of a checkpoint, to be read row by row.

    Raises InputError where names, sizes or dtypes are not those of the description.
    """

    folder: Path
    """The checkpoint's folder of torch_dist data files."""
    description: CheckpointDescription
    _opened: StoredTensors | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        entries, known = self._stored.entries, set()
        for rule, layer, bound in bound_rules(self.shape):
            name, stacked = stored_name(self._stored, rule, layer, bound)
            if name not in entries:
                raise InputError("checkpoint", self.folder, f"has no tensor {name}")
            known.add(name)
            self._check(bound, name, tuple(entries[name].size)[1 if stacked else 0 :])
        unknown = sorted(
            name for name in entries if name.startswith(_MODEL_PARTS) and name not in known
        )
        if unknown:
            raise InputError(
                "checkpoint", self.folder, f"unknown weights: {', '.join(unknown[:5])}"
            )

    def __getstate__(self) -> dict[str, object]:
        """Returns what is pickled: not the open files, which other processes open themselves."""
        return {"folder": self.folder, "description": self.description, "_opened": None}

    @property
    def shape(self) -> ModelShape:
        """Sizes of the model."""
        return self.description.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that all weights are stored in."""
        return self.description.torch_dtype

    @property
    def _stored(self) -> StoredTensors:
        if self._opened is None:
            self._opened = StoredTensors(self.folder)
        return self._opened

    def parts(
        self, rule: WeightRule, layer: int | None, bound: WeightRule
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields (number of the first row, rows) for each stored part of one whole Megatron weight.

        Rows that pad the vocabulary may follow the model's own.
        """
        name, stacked = stored_name(self._stored, rule, layer, bound)
        yield from self._stored.row_parts(name, layer if stacked else None)

    def fingerprint(self) -> list[list[object]]:
        """Returns each file's name, size and time of change, to notice other contents."""
        files = sorted(file for file in self.folder.iterdir() if file.is_file())
        return [
            [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files
        ]

    def _check(self, rule: WeightRule, name: str, sizes: tuple[int, ...]) -> None:
        wanted = rule.sizes_in_megatron(self.shape)
        fits = sizes == wanted
        if rule.kind == "embedding":  # other writers pad the vocabulary to another multiple
            fits = sizes[1:] == wanted[1:] and sizes[0] >= self.shape.vocab_size
        if not fits:
            rule_text = f"{name} has sizes {list(sizes)}, its description says {list(wanted)}"
            raise InputError("checkpoint", self.folder, rule_text)
        found = self._stored.entries[name].properties.dtype
        if found != self.dtype:
            raise InputError(
                "checkpoint", self.folder, f"{name} is {found}, its description says {self.dtype}"
            )


def stored_name(
    stored: StoredTensors, rule: WeightRule, layer: int | None, bound: WeightRule
) -> tuple[str, bool]:
    """Returns a weight's name in the checkpoint, and whether all layers are stacked under it.

    megatron-core stores a weight of all layers as one tensor with the layer as its first dim, or,
    for layers that differ from one another, each layer's under a name with its number.
    """
    if layer is not None and bound.stored not in stored.entries:
        return rule.stacked, True
    return bound.stored, False


def read_weight(
    stored: StoredTensors, rule: WeightRule, layer: int | None, bound: WeightRule
) -> Tensor:
    """Returns one whole Megatron weight of a checkpoint.

    Args:
        stored: the open checkpoint.
        rule: the weight's rule for any layer.
        layer: number of the layer; None for a weight outside the layers.
        bound: the rule of that layer.
    """
    name, stacked = stored_name(stored, rule, layer, bound)
    return stored.read(name, layer if stacked else None)
