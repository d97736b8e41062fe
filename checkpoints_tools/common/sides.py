"""One side of a comparison: a model in any format, its weights read one by one under HF names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_tools.common.weight_map import DERIVED_SUFFIXES, bound_rules, hf_sizes, to_hf
from checkpoints_tools.gguf.header import is_gguf
from checkpoints_tools.gguf.model import opened_gguf
from checkpoints_tools.hf.exporting import read_weight
from checkpoints_tools.hf.folder import HfFolder, bits_equal, open_hf_folder
from checkpoints_tools.hf.importing import TIED, check_folder, load_hf_weights
from checkpoints_tools.load_any import find_model, load_model
from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel, ModelShape, build_model
from megatron_longrope.model.architectures import with_rope_said
from megatron_longrope.model.checkpoints.checkpoint import read_description, weights_folder
from megatron_longrope.model.checkpoints.stored_tensors import StoredTensors
from megatron_longrope.rope import FactorSet, factor_set_from_hf
from megatron_longrope.runtime import Runtime


@dataclass(frozen=True)
class Side:
    """A model to compare, whatever format it is stored in."""

    kind: str
    """The format, in words."""
    path: Path
    shape: ModelShape
    factor_set: FactorSet
    names: tuple[str, ...]
    """Hugging Face names of the weights that are there, in the order of the model."""
    read: Callable[[str], Tensor]
    """Returns one weight by its Hugging Face name."""
    load: Callable[[Runtime], LongRopeModel]
    """Returns the whole model in float32."""


@contextmanager
def opened_side(path: Path | str) -> Iterator[Side]:
    """Yields the model in a GGUF file, Hugging Face folder, Megatron checkpoint or run directory.

    Missing and surplus weights are no error here, as the comparison reports them. Raises
    InputError for a path that holds no model, and for a damaged one.
    """
    path = Path(path)
    if is_gguf(path):
        with opened_gguf(path, tokenizer=False) as model:
            yield _of_folder("GGUF file", path, model)
        return
    if path.is_file():
        raise InputError("model", path, "a file that is not GGUF; models are folders otherwise")
    kind, folder = find_model(path)
    if kind == "hf":
        yield _of_folder("Hugging Face folder", folder, open_hf_folder(folder))
    else:
        yield _of_checkpoint(folder)


def _of_folder(kind: str, path: Path, folder: HfFolder) -> Side:
    shape = ModelShape.from_hf(folder.config)
    factor_set = factor_set_from_hf(with_rope_said(folder.config))
    present = {name for name in folder.files if not name.endswith(DERIVED_SUFFIXES)}
    if shape.tie_embeddings:
        # some folders store the tied output layer too: the same weight a second time
        present -= {
            copy for copy, of in TIED.items() if {copy, of} <= present and _same(folder, copy, of)
        }
    order = [name for name in hf_sizes(shape) if name in present]

    def load(runtime: Runtime) -> LongRopeModel:
        check_folder(folder)
        model = build_model(shape, runtime, dtype=torch.float32, initialize=False)
        load_hf_weights(model, folder)
        model.set_factors(factor_set)
        return model

    return Side(
        kind, path, shape, factor_set, (*order, *sorted(present - set(order))), folder.tensor, load
    )


def _same(folder: HfFolder, copy: str, of: str) -> bool:
    return bits_equal(folder.tensor(copy), folder.tensor(of))


def _of_checkpoint(folder: Path) -> Side:
    description = read_description(folder)
    shape = description.shape
    stored = StoredTensors(weights_folder(folder))
    where = {name: entry for entry in bound_rules(shape) for name in entry[2].hf}
    # HF's q, k and v (or gate and up) come from one Megatron weight, which is read once for them.
    latest: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        if name not in latest:
            latest.clear()
            rule, layer, bound = where[name]
            latest.update(to_hf(bound, read_weight(stored, rule, layer, bound), shape))
        return latest[name]

    def load(runtime: Runtime) -> LongRopeModel:
        return load_model(folder, runtime).model

    return Side(
        "Megatron checkpoint",
        folder,
        shape,
        description.factor_set,
        tuple(hf_sizes(shape)),
        read,
        load,
    )
