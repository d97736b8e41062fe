"""GGUF file → Megatron checkpoint, one tensor at a time, blocks expanded to the numbers they stand for."""

from __future__ import annotations

from pathlib import Path

from checkpoints_tools.gguf_model import opened_gguf
from checkpoints_tools.import_hf import Conversion, import_folder
from megatron_longrope.runtime import Runtime


def import_gguf(path: Path | str, megatron_dir: Path | str, runtime: Runtime, *, tokenizer: bool = True) -> Conversion:
    """Writes the Megatron checkpoint of a GGUF file of a Llama-type model; every rank calls it.

    `tokenizer` False leaves the file's tokenizer out. Raises InputError for a damaged file, for another architecture,
    and for a tokenizer or scaling that cannot be carried; MissingDependencyError without the package `gguf`.
    """
    with opened_gguf(path, tokenizer=tokenizer) as folder:
        return import_folder(folder, megatron_dir, runtime)
