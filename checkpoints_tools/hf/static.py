"""A second Hugging Face folder with one factor set, for engines that choose a set once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from checkpoints_tools.hf.exporting import config_of_export
from checkpoints_tools.hf.folder import CONFIG_FILE
from checkpoints_tools.hf.writing import refuse_foreign_hf_folder, write_settings
from checkpoints_tools.serving import serving_set, with_engine_keys
from megatron_longrope.model.checkpoints.checkpoint import put_in_place
from megatron_longrope.rope import FactorSet


def export_static(
    export: Path, target: Path, megatron_dir: Path, factor_set: FactorSet
) -> list[str]:
    """Writes the export once more, whole, with the longest factors of a set for all inputs.

    Weights are hard links to those in `export` where the file system has them, else copies: the
    second folder costs no room, and each may be deleted without the other. Returns in words which
    factors are left out. Raises InputError where `target` holds anything an export does not write.

    Args:
        export: the folder that `export_hf` wrote of the checkpoint.
        target: the folder to write; a static export that is there is replaced.
        megatron_dir: the checkpoint, whose config the export's is made from.
        factor_set: the factors to choose from.
    """
    refuse_foreign_hf_folder(target)
    single, left_out = serving_set(factor_set, "static", None)
    config = config_of_export(megatron_dir, single)
    settings = json.loads(config) if isinstance(config, bytes) else config
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(
        export, partial, copy_function=_link, ignore=shutil.ignore_patterns(CONFIG_FILE)
    )
    write_settings(partial, with_engine_keys(settings), None)
    put_in_place(partial, target)
    return left_out


def _link(source: str, target: str) -> str:
    """Links or copies one file: not every file system has hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
