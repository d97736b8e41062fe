"""Imports a GGUF file as a Megatron checkpoint, expanding its blocks a few rows at a time."""

from __future__ import annotations

from pathlib import Path

from checkpoints_tools.common.units import Progress
from checkpoints_tools.gguf.model import opened_gguf
from checkpoints_tools.hf.importing import Conversion, ImportOptions, import_folder
from megatron_longrope.runtime import Runtime


def import_gguf(
    path: Path | str,
    megatron_dir: Path | str,
    runtime: Runtime | None = None,
    *,
    tokenizer: bool = True,
    replace: bool = True,
    processes: int = 1,
    progress: Progress | None = None,
) -> Conversion:
    """Writes the Megatron checkpoint of a GGUF file; after an interruption the same call goes on.

    Raises InputError for a damaged file, for an architecture other than llama, and for a tokenizer
    or RoPE scaling that cannot be carried; MissingDependencyError without the package `gguf`.

    Args:
        path: the GGUF file.
        megatron_dir: the checkpoint to write.
        runtime: where given, every rank calls this function: one converts and the others wait.
        tokenizer: False leaves the file's tokenizer out.
        replace: False refuses a checkpoint that is there.
        processes: number of processes to convert in.
        progress: called with the bytes converted and in all.
    """
    with opened_gguf(path, tokenizer=tokenizer) as folder:
        options = ImportOptions(replace=replace, processes=processes, progress=progress)
        return import_folder(folder, megatron_dir, runtime, options)
