"""GGUF file → Megatron checkpoint, a few rows at a time, blocks expanded to numbers."""

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
    """Writes the Megatron checkpoint of a GGUF file of a Llama-type model; interrupted, the same
    call goes on.

    With a runtime every rank calls it, one converts and the others wait. `tokenizer` False leaves
    the file's tokenizer out; `replace` False refuses a checkpoint that is there. Raises InputError
    for a damaged file, for another architecture, and for a tokenizer or scaling that cannot be
    carried; MissingDependencyError without the package `gguf`.
    """
    with opened_gguf(path, tokenizer=tokenizer) as folder:
        options = ImportOptions(replace=replace, processes=processes, progress=progress)
        return import_folder(folder, megatron_dir, runtime, options)
