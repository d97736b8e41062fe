"""Every family under TP2 and PP2: megatron-core loads the import into each, and it gives
transformers' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.load_any import load_model
from checkpoints_tools.verify import all_equal, verify
from megatron_longrope.model import document_logits
from megatron_longrope.model.checkpoints.checkpoint import save_checkpoint
from megatron_longrope.runtime import ParallelLayout, start_runtime
from tests.support.formats.hf_families import FAMILIES, family_document, family_logits, save_family
from tests.support.spawn import run_distributed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
LAYOUTS = {"TP2": ParallelLayout(tensor_parallel=2), "PP2": ParallelLayout(pipeline_parallel=2)}
SEED = 1


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[Path], list[np.ndarray], list[np.ndarray]]:
    """One import per family, a document for it, and transformers' logits."""
    paths, documents, logits = [], [], []
    for family in FAMILIES:
        path = tmp_path_factory.mktemp(family)
        theirs = save_family(path / "hf", family, SEED)
        import_hf(path / "hf", path / "megatron")
        document = family_document(theirs)
        paths.append(path)
        documents.append(document)
        logits.append(family_logits(theirs, document))
    return paths, documents, logits


def load_and_score(
    layout: ParallelLayout, paths: list[Path], documents: list[np.ndarray]
) -> list[np.ndarray]:
    """Runs on every rank: logits of each import under this layout, which is then saved again from
    there."""
    results = []
    with start_runtime(layout, threads=1) as runtime:
        for path, document in zip(paths, documents, strict=True):
            model = load_model(path / "megatron", runtime, angle_precision="hf").model
            results.append(document_logits(model, document))
            save_checkpoint(model, path / "again", hf_files=path / "hf")
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_family_under_every_layout(
    folders: tuple[list[Path], list[np.ndarray], list[np.ndarray]], layout: str
) -> None:
    paths, documents, expected = folders
    for results in run_distributed(
        2, load_and_score, LAYOUTS[layout], paths, documents, timeout=400
    ):
        for path, logits, theirs in zip(paths, results, expected, strict=True):
            np.testing.assert_allclose(logits, theirs, atol=1e-4, rtol=0, err_msg=path.name)
    for path in paths:
        assert all_equal(verify(path / "hf", path / "again")), path.name
