"""Compares the files beside the weights of two models (config, tokenizer, …) byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from checkpoints_tools.gguf.header import is_gguf
from checkpoints_tools.load_any import find_model
from megatron_longrope.model.checkpoints.carried_files import carried_files
from megatron_longrope.model.checkpoints.checkpoint import hf_folder


def compare_files(a: Path, b: Path) -> dict[str, list[str]]:
    """Returns the names of files under "equal", "differ", "only A" and "only B".

    Where one side has no such files, as a GGUF file, the result is empty. Files that differ do not
    make two models differ: other factors, for example, change config.json.
    """
    left, right = _files(a), _files(b)
    if not left or not right:
        return {}
    both = [name for name in left if name in right]
    equal = [name for name in both if left[name].read_bytes() == right[name].read_bytes()]
    return {
        "equal": equal,
        "differ": [name for name in both if name not in equal],
        "only A": [name for name in left if name not in right],
        "only B": [name for name in right if name not in left],
    }


def _files(path: Path) -> Mapping[str, Path]:
    if is_gguf(path):
        return {}
    kind, folder = find_model(path)
    folder = folder if kind == "hf" else hf_folder(folder)
    return {name: folder / name for name in carried_files(folder)}
