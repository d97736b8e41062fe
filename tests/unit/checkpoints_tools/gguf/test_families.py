"""GGUF of other families than SmolLM2's: Llamas of every shape and scaling, Mistral without its
window, no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from checkpoints_tools.gguf.exporting import export_gguf
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.verify import all_equal, verify
from megatron_longrope.errors import InputError
from megatron_longrope.runtime import Runtime
from tests.support.formats.gguf_oracle import LlamaCpp
from tests.support.formats.hf_families import (
    FAMILIES,
    family_document,
    family_logits,
    random_config,
    save_family,
)
from tests.support.tiny_models import single_runtime

LENGTH = 300
"""Beyond the families' window of 256, so that both choose the long set where there are two."""


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


@pytest.mark.parametrize("seed", range(6))
def test_llamas_of_every_scaling_go_out(tmp_path: Path, runtime: Runtime, seed: int) -> None:
    """GQA ratios 1, 3 and 8, tied or not, head_dim beside hidden/heads; linear, YaRN and Llama 3.1
    as λ."""
    theirs = save_family(tmp_path / "hf", "llama", seed)
    import_hf(tmp_path / "hf", tmp_path / "megatron", runtime)
    export_gguf(tmp_path / "megatron", tmp_path / "m.gguf", tokenizer=False)
    document = family_document(theirs, LENGTH)
    ours = LlamaCpp(tmp_path / "m.gguf", LENGTH).logits(document)
    # transformers' angles are float32, llama.cpp's oracle's float64: 5e-4 and less at this length
    np.testing.assert_allclose(ours, family_logits(theirs, document), atol=2e-3, rtol=0)
    rows = verify(tmp_path / "hf", tmp_path / "m.gguf")
    assert all_equal([row for row in rows if not row.name.startswith("(")])


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family not in ("llama", "mistral")]
)
def test_families_without_factor_tensors_are_refused(
    tmp_path: Path, runtime: Runtime, family: str
) -> None:
    save_family(tmp_path / "hf", family, 0)
    import_hf(tmp_path / "hf", tmp_path / "megatron", runtime)
    with pytest.raises(InputError, match="llama and mistral"):
        export_gguf(tmp_path / "megatron", tmp_path / "m.gguf", tokenizer=False)


def test_a_sliding_window_is_refused_unless_switched_off(tmp_path: Path, runtime: Runtime) -> None:
    seed = next(seed for seed in range(99) if random_config("mistral", seed).sliding_window == 100)
    theirs = save_family(tmp_path / "hf", "mistral", seed)
    import_hf(tmp_path / "hf", tmp_path / "kept", runtime)
    with pytest.raises(InputError, match="sliding_window"):
        export_gguf(tmp_path / "kept", tmp_path / "m.gguf", tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "off", runtime, keep_windows=False)
    export_gguf(tmp_path / "off", tmp_path / "m.gguf", tokenizer=False)
    theirs.config.sliding_window = None
    document = family_document(theirs, LENGTH)
    ours = LlamaCpp(tmp_path / "m.gguf", LENGTH).logits(document)
    np.testing.assert_allclose(ours, family_logits(theirs, document), atol=2e-3, rtol=0)
