"""Reads Hugging Face model folders with safetensors weights, and checks what they claim."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoints_tools.common.tensor_file import (
    StoredTensor,
    is_finite,
    read_into,
    read_safetensors_header,
)
from checkpoints_tools.common.weight_map import DERIVED_SUFFIXES
from megatron_longrope.errors import InputError
from megatron_longrope.model.checkpoints.carried_files import carried_files, stays_behind

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_COMPARED_ROWS = 1024


@dataclass(frozen=True)
class HfFolder:
    """A model folder whose config, index and file headers agree; tensors are read one by one."""

    path: Path
    config: dict[str, Any]
    """Contents of config.json."""
    files: Mapping[str, Path]
    """The file that holds each tensor, by the tensor's name."""

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """The place of each tensor in its file, by the tensor's name."""
        headers = [read_safetensors_header(file) for file in sorted(set(self.files.values()))]
        return {name: place for header in headers for name, place in header.items()}

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor; raises InputError where it is damaged or not finite."""
        tensor = self._rows(name, 0, None)
        if not is_finite(tensor):
            raise InputError("model", self.files[name], f"{name} holds NaN or infinity")
        return tensor

    def header(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Returns sizes and dtype of a tensor without reading it."""
        return self.stored[name].sizes, self.stored[name].dtype

    def read_rows(self, name: str, first: int, target: Tensor) -> None:
        """Fills a contiguous `target` with a tensor's rows from `first` on, finite or not."""
        place, file = self.stored[name], self.files[name]
        with file.open("rb", buffering=0) as stream:
            read_into(stream.fileno(), place.start + first * place.row_bytes, target, file)

    def _rows(self, name: str, start: int, stop: int | None) -> Tensor:
        path = self.files[name]
        try:
            with safe_open(path, "pt") as file:
                if stop is None:
                    return cast(Tensor, file.get_tensor(name))
                return cast(Tensor, file.get_slice(name)[start:stop])
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise InputError("model", path, f"{name} cannot be read: {error}") from error

    def fingerprint(self) -> list[list[object]]:
        """Returns each file's name, size and time of change, to notice other contents."""
        read = [self.path / name for name in carried_files(self.path)] + sorted(
            set(self.files.values())
        )
        stats = [(file, file.stat()) for file in read]
        return [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]

    def stays_behind(self) -> tuple[str, ...]:
        """Returns the names of files and folders that no conversion reads or carries."""
        return stays_behind(self.path, [INDEX_FILE, *(file.name for file in self.files.values())])

    def check_weights(
        self, expected: Mapping[str, tuple[int, ...]], *, tied_to: Mapping[str, str]
    ) -> torch.dtype:
        """Returns the one dtype of all weights, after comparing names and sizes with `expected`.

        `tied_to` gives, by name, weights that may be stored although they are tied to another: they
        must equal it in every bit. Raises InputError for weights that are missing, unknown, of
        other sizes or of mixed dtypes.
        """
        present = {name for name in self.files if not name.endswith(DERIVED_SUFFIXES)}
        self._refuse_names("weights are missing", expected.keys() - present)
        self._refuse_names("unknown weights", present - expected.keys() - tied_to.keys())
        dtypes = set()
        for name, sizes in expected.items():
            found, dtype = self.header(name)
            if found != sizes:
                raise InputError(
                    "model",
                    self.path,
                    f"{name} has sizes {list(found)}, its config says {list(sizes)}",
                )
            dtypes.add(dtype)
        if len(dtypes) > 1:
            mixed = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise InputError(
                "model", self.path, f"weights of mixed dtypes ({mixed}); convert them to one first"
            )
        for name in present & tied_to.keys():
            if not self._same_bits(name, tied_to[name]):
                raise InputError(
                    "model",
                    self.path,
                    f"tie_word_embeddings, but {name} differs from {tied_to[name]}",
                )
        return dtypes.pop()

    def _same_bits(self, name: str, other: str) -> bool:
        """Returns whether two weights are equal, read in parts: memory may not hold both."""
        if self.header(name) != self.header(other):
            return False
        for start in range(0, self.header(name)[0][0], _COMPARED_ROWS):
            stop = start + _COMPARED_ROWS
            if not bits_equal(self._rows(name, start, stop), self._rows(other, start, stop)):
                return False
        return True

    def _refuse_names(self, what: str, names: Iterable[str]) -> None:
        some = sorted(names)
        if some:
            more = f" and {len(some) - 5} more" if len(some) > 5 else ""
            raise InputError("model", self.path, f"{what}: {', '.join(some[:5])}{more}")


def is_hf_folder(path: Path) -> bool:
    """Returns whether a folder looks like an HF model: it has config.json and safetensors files."""
    return (path / CONFIG_FILE).is_file() and any(path.glob("*.safetensors*"))


def open_hf_folder(path: Path | str) -> HfFolder:
    """Returns the checked folder; raises InputError that says what is wrong with it."""
    path = Path(path)
    if path.is_file():
        raise InputError(
            "model", path, f"a file; a model is a folder with {CONFIG_FILE} and safetensors"
        )
    if not path.is_dir():
        raise InputError("model", path, "no such folder")
    config, weight_files = read_config(path), _weight_files(path)
    files = {name: file for file in weight_files for name in read_safetensors_header(file)}
    return HfFolder(path, config, files)


def read_config(path: Path) -> dict[str, Any]:
    """Returns a folder's config.json; raises InputError where it is missing or damaged."""
    file = path / CONFIG_FILE
    if not file.is_file():
        raise InputError("model", path, f"a model folder without config: it has no {CONFIG_FILE}")
    return _read_json(file)


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors are the same in sizes, dtype and every bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )


def _weight_files(path: Path) -> list[Path]:
    """Returns the files that hold weights: those of the index, or the single one without index."""
    if (path / INDEX_FILE).is_file() and (path / SINGLE_FILE).is_file():
        # transformers would read the single file without a word
        raise InputError(
            "model",
            path,
            f"has both {SINGLE_FILE} and {INDEX_FILE}: remove the one that does not count",
        )
    if (path / INDEX_FILE).is_file():
        return _indexed_files(path)
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    if any(file for pattern in _PICKLES for file in path.glob(pattern)):
        raise InputError(
            "model",
            path,
            "its weights are pickles, which are never read: convert them to safetensors",
        )
    raise InputError(
        "model",
        path,
        f"a model folder without weights: it has no {SINGLE_FILE} and no {INDEX_FILE}",
    )


def _indexed_files(path: Path) -> list[Path]:
    index = path / INDEX_FILE
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("model", index, "has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise InputError(
                "model",
                index,
                f"{name} lies at {file!r}, which is no safetensors file of this folder",
            )
    for file in sorted(set(weight_map.values())):
        if not (path / file).is_file():
            raise InputError("model", index, f"shard {file} is missing")
        inside = read_safetensors_header(path / file).keys()
        said = {name for name, where in weight_map.items() if where == file}
        if inside != said:
            raise InputError(
                "model", path / file, f"{min(inside ^ said)} is not where the index says"
            )
    return [path / file for file in sorted(set(weight_map.values()))]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise InputError("model", file, f"not a whole JSON file: {error}") from error
    if not isinstance(values, dict):
        raise InputError("model", file, "not a JSON object")
    return values
