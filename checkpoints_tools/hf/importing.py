"""Imports a Hugging Face folder as a Megatron checkpoint of the same dtype, row by row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_tools.common.rows import read_megatron_rows
from checkpoints_tools.common.tensor_file import begin_writeback
from checkpoints_tools.common.torch_dist_writer import (
    EXTRA_STATE,
    MODULES_WITH_EXTRA_STATE,
    StoredChunk,
    StoredTensorInfo,
    write_metadata,
    write_object,
    write_tensor,
)
from checkpoints_tools.common.units import (
    Progress,
    Record,
    Report,
    Unit,
    forget,
    make_units,
    partial_folder,
    refuse_existing,
)
from checkpoints_tools.common.weight_map import (
    bound_rules,
    hf_sizes,
    rule_of,
    tensor_parallel_share,
    to_megatron,
)
from checkpoints_tools.hf.folder import HfFolder, open_hf_folder
from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.model import LongRopeModel, ModelShape
from megatron_longrope.model.architectures import with_rope_said
from megatron_longrope.model.architectures.weights import WeightRule
from megatron_longrope.model.checkpoints.checkpoint import (
    HF_FOLDER,
    WEIGHTS_FOLDER,
    CheckpointDescription,
    carry_hf_files,
    dtype_name,
    put_in_place,
    refuse_foreign_folder,
    write_description,
)
from megatron_longrope.rope import factor_set_from_hf, method_from_hf
from megatron_longrope.runtime import Runtime

TIED = {"lm_head.weight": "model.embed_tokens.weight"}
"""Weights of a tied model that some folders store although they equal another."""
CHUNK_BYTES = 64 << 20
"""Most bytes of rows read, checked and written at once; they become one chunk of the checkpoint."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote, and what of the source it did not carry."""

    target: Path
    num_tensors: int
    num_bytes: int
    """Bytes of all weights."""
    dtype: str
    left_out: tuple[str, ...] = ()
    """Names of tensors left out, since they are computed from the config or stored twice."""
    stayed_behind: tuple[str, ...] = ()
    """Names of other files and folders (these with a slash) of the source that were not carried."""


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import, which `import_hf` explains."""

    keep_windows: bool = True
    dynamic_length: int | None = None
    replace: bool = True
    processes: int = 1
    progress: Progress | None = None


def import_hf(
    hf_dir: Path | str,
    megatron_dir: Path | str,
    runtime: Runtime | None = None,
    *,
    keep_windows: bool = True,
    dynamic_length: int | None = None,
    replace: bool = True,
    processes: int = 1,
    progress: Progress | None = None,
) -> Conversion:
    """Writes the Megatron checkpoint of a Hugging Face folder.

    After an interruption the same call goes on where it stopped. A checkpoint already there is
    replaced once the new one is whole. Raises InputError for a folder that is damaged, or whose
    architecture or settings are not supported.

    Args:
        hf_dir: the folder to import.
        megatron_dir: the checkpoint to write.
        runtime: where given, every rank calls this function: one converts and the others wait.
        keep_windows: False switches sliding-window attention off, also in later exports.
        dynamic_length: length in tokens at which the factors of rope_type `dynamic`, which follow
            the input's length otherwise, are fixed.
        replace: False refuses a checkpoint that is there.
        processes: number of processes to convert in.
        progress: called with the bytes converted and in all.
    """
    options = ImportOptions(keep_windows, dynamic_length, replace, processes, progress)
    return _on_main_rank(runtime, lambda: _import(open_hf_folder(hf_dir), megatron_dir, options))


def import_folder(
    folder: HfFolder,
    megatron_dir: Path | str,
    runtime: Runtime | None = None,
    options: ImportOptions | None = None,
) -> Conversion:
    """Does what `import_hf` does with an opened folder, whose weights may come from GGUF files."""
    return _on_main_rank(runtime, lambda: _import(folder, megatron_dir, options or ImportOptions()))


def _on_main_rank(runtime: Runtime | None, convert: Callable[[], Conversion]) -> Conversion:
    if runtime is None:
        return convert()
    outcome: Conversion | LongRopeError | None = None
    if runtime.is_main:
        try:
            outcome = convert()
        except LongRopeError as error:  # raised below on every rank, so that none waits forever
            outcome = error
    outcome = runtime.broadcast(outcome)
    if isinstance(outcome, LongRopeError):
        raise outcome
    assert outcome is not None
    return outcome


def _import(folder: HfFolder, megatron_dir: Path | str, options: ImportOptions) -> Conversion:
    target = Path(megatron_dir).resolve()
    if not options.replace:
        refuse_existing("megatron_dir", target)
    shape, dtype = check_folder(folder, keep_windows=options.keep_windows)
    config = with_rope_said(folder.config)
    if options.dynamic_length is not None and not method_from_hf(config)[0].follows_length:
        rule = "goes with rope_type dynamic; this model's factors do not follow the input"
        raise InputError("dynamic_length", options.dynamic_length, rule)
    description = CheckpointDescription(
        shape=shape,
        factor_set=factor_set_from_hf(config, options.dynamic_length),
        dtype=dtype_name(dtype),
    )
    refuse_foreign_folder(target)
    maker = _WeightFile(folder, shape, dtype)
    units = maker.units()
    plan = {
        "import": folder.fingerprint(),
        "keep_windows": options.keep_windows,
        "chunk_bytes": CHUNK_BYTES,
    }
    with partial_folder(target, plan, sum(unit.num_bytes for unit in units)) as partial:
        records = make_units(
            partial, units, maker, processes=options.processes, progress=options.progress
        )
        weights = partial / WEIGHTS_FOLDER
        write_metadata(weights, maker.stored_tensors(), _chunks_of(units, records))
        carry_hf_files(folder.path, partial / HF_FOLDER)
        write_description(partial, description)
        forget(partial)
        put_in_place(partial, target)
    names = hf_sizes(shape)
    left_out = tuple(sorted(folder.files.keys() - names.keys()))
    num_bytes = shape.num_parameters * dtype.itemsize
    return Conversion(
        Path(megatron_dir),
        len(names),
        num_bytes,
        description.dtype,
        left_out,
        folder.stays_behind(),
    )


@dataclass(frozen=True)
class _WeightFile:
    """Writes the data files of the checkpoint.

    The first holds the embedding, the last the final norm and the output layer, and those between
    hold one layer each.
    """

    folder: HfFolder
    shape: ModelShape
    dtype: torch.dtype

    def units(self) -> list[Unit]:
        """Returns the data files to write, with their sizes."""
        sizes = [0] * (self.shape.num_layers + 2)
        for _, layer, rule in bound_rules(self.shape):
            numbers = torch.Size(rule.sizes_in_megatron(self.shape)).numel()
            sizes[self._unit_of(rule, layer)] += numbers * self.dtype.itemsize
        # torch.distributed.checkpoint's own names: file 0 of rank `number`
        return [
            Unit(f"{WEIGHTS_FOLDER}/__{number}_0.distcp", size) for number, size in enumerate(sizes)
        ]

    def stored_tensors(self) -> dict[str, StoredTensorInfo]:
        """Returns dtype and sizes of every tensor of the checkpoint, with all layers stacked."""
        tensors = {}
        for rule, layer, bound in bound_rules(self.shape):
            layers = () if layer is None else (self.shape.num_layers,)
            tensors[rule.stacked] = StoredTensorInfo(
                self.dtype, (*layers, *bound.sizes_in_megatron(self.shape))
            )
        return tensors

    def __call__(self, number: int, path: Path, report: Report) -> Record:
        chunks: list[list[Any]] = []
        # one buffer for all blocks: a row at least, even where it is longer than a chunk
        size = min(self.units()[number].num_bytes, max(CHUNK_BYTES, self._longest_row()))
        buffer = bytearray(size)
        with path.open("wb") as stream:
            for rule, layer, bound in bound_rules(self.shape):
                if self._unit_of(bound, layer) != number:
                    continue
                for first, block in self._blocks(bound, buffer):
                    start, length = write_tensor(stream, block if layer is None else block[None])
                    begin_writeback(stream.fileno(), start, length)
                    offsets, sizes = [first, *[0] * (block.dim() - 1)], list(block.shape)
                    if layer is not None:
                        offsets, sizes = [layer, *offsets], [1, *sizes]
                    chunks.append([rule.stacked, offsets, sizes, start, length])
                    report(block.nbytes)
            if 0 < number <= self.shape.num_layers:
                # megatron-core names an object of layer l of n "…/shard_l_n"
                for module in MODULES_WITH_EXTRA_STATE:
                    owner = f"decoder.layers.{module}.{EXTRA_STATE}"
                    name = f"{owner}/shard_{number - 1}_{self.shape.num_layers}"
                    chunks.append([name, None, None, *write_object(stream, [None])])
        return {"chunks": chunks}

    def _blocks(self, rule: WeightRule, buffer: bytearray) -> Iterator[tuple[int, Tensor]]:
        """Yields (number of the first row, rows) for each block of rows of a whole Megatron weight.

        All blocks lie in `buffer` one after the other: each is overwritten by the next.
        """
        sizes = rule.sizes_in_megatron(self.shape)
        row_numbers = torch.Size(sizes[1:]).numel()
        at_once = max(1, CHUNK_BYTES // (row_numbers * self.dtype.itemsize))
        for first in range(0, sizes[0], at_once):
            rows = min(at_once, sizes[0] - first)
            flat = torch.frombuffer(buffer, dtype=self.dtype, count=rows * row_numbers)
            block = flat.view(rows, *sizes[1:])
            read_megatron_rows(self.folder, rule, self.shape, first, block)
            yield first, block

    def _longest_row(self) -> int:
        sizes = [rule.sizes_in_megatron(self.shape)[1:] for _, _, rule in bound_rules(self.shape)]
        return max(torch.Size(size).numel() for size in sizes) * self.dtype.itemsize

    def _unit_of(self, rule: WeightRule, layer: int | None) -> int:
        if layer is not None:
            return layer + 1
        return 0 if rule.megatron.startswith("embedding") else self.shape.num_layers + 1


def _chunks_of(units: list[Unit], records: list[Record]) -> Iterator[StoredChunk]:
    for unit, record in zip(units, records, strict=True):
        for name, offsets, sizes, start, length in record["chunks"]:
            box = (None, None) if offsets is None else (tuple(offsets), tuple(sizes))
            yield StoredChunk(name, box[0], box[1], os.path.basename(unit.path), start, length)


def check_folder(folder: HfFolder, *, keep_windows: bool = True) -> tuple[ModelShape, torch.dtype]:
    """Returns shape and dtype of an HF folder; raises InputError unless all weights are right."""
    shape = ModelShape.from_hf(folder.config, keep_windows=keep_windows)
    tied = TIED if shape.tie_embeddings else {}
    return shape, folder.check_weights(hf_sizes(shape), tied_to=tied)


@torch.no_grad()
def load_hf_weights(model: LongRopeModel, folder: HfFolder) -> None:
    """Fills this rank's part of the model from a folder, one weight at a time."""
    groups = model.runtime.groups
    for name, parameter in model.named_parameters():
        rule = rule_of(name, model.shape)
        whole = to_megatron(rule, [folder.tensor(part) for part in rule.hf], model.shape)
        _fill(parameter, tensor_parallel_share(rule, whole, groups.tp.rank(), groups.tp.size()))


def _fill(parameter: Tensor, share: Tensor) -> None:
    assert parameter.shape == share.shape, (tuple(parameter.shape), tuple(share.shape))
    parameter.copy_(share)
