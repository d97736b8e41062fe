"""Checkpoints written under one layout read under any other; HF folders cut by tensor and pipeline
parallelism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.load_any import load_model
from checkpoints_tools.verify import all_equal, verify
from megatron_longrope.model import document_logits
from megatron_longrope.model.checkpoints.checkpoint import read_description, save_checkpoint
from megatron_longrope.runtime import ParallelLayout, Runtime, start_runtime
from tests.support.formats.hf_folders import SHAPE, random_hf_folder
from tests.support.spawn import run_distributed
from tests.support.tiny_models import random_documents

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
LAYOUTS = {
    "TP2": ParallelLayout(tensor_parallel=2),
    "PP2": ParallelLayout(pipeline_parallel=2),
    "DP2": ParallelLayout(),
}
(DOCUMENT,) = random_documents(50, vocabulary=SHAPE.vocab_size)


def convert_and_save_again(layout: ParallelLayout, folders: list[Path]) -> list[list[np.ndarray]]:
    """Runs on every rank: imports, loads both folders, saves what it loaded; returns the logits
    seen in each."""
    with start_runtime(layout, threads=1) as runtime:
        return [_convert_and_save_again(runtime, folder) for folder in folders]


def _convert_and_save_again(runtime: Runtime, folder: Path) -> list[np.ndarray]:
    import_hf(folder / "hf", folder / "imported", runtime)
    from_hf = load_model(folder / "hf", runtime).model
    from_single = load_model(folder / "single", runtime).model
    save_checkpoint(from_single, folder / "again", iteration=5)
    return [document_logits(model, DOCUMENT) for model in (from_hf, from_single)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_reads_and_writes_what_another_does(tmp_path: Path, layout: str) -> None:
    folders = [tmp_path / "tied", tmp_path / "untied"]
    for folder, tied in zip(folders, (True, False), strict=True):
        random_hf_folder(
            folder / "hf", SHAPE.model_copy(update={"tie_embeddings": tied}), torch.bfloat16
        )
    with start_runtime(threads=1) as runtime:
        for folder in folders:
            import_hf(folder / "hf", folder / "single", runtime)
        expected = [
            document_logits(load_model(folder / "hf", runtime).model, DOCUMENT)
            for folder in folders
        ]
    for results in run_distributed(
        2, convert_and_save_again, LAYOUTS[layout], folders, timeout=400
    ):
        for logits, ours in zip(results, expected, strict=True):
            for seen in logits:
                np.testing.assert_allclose(seen, ours, atol=1e-4, rtol=0)
    with start_runtime(threads=1) as runtime:
        for folder, ours in zip(folders, expected, strict=True):
            assert all_equal(verify(folder / "hf", folder / "imported"))
            assert np.array_equal(
                document_logits(load_model(folder / "again", runtime).model, DOCUMENT), ours
            )
            assert read_description(folder / "again").iteration == 5
