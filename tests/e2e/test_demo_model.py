"""The shipped model: through Megatron and back without a bit lost, and transformers' numbers at
every length."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.load_any import load_model
from checkpoints_tools.verify import all_equal, verify
from data_prep.stdlib_corpus import split
from megatron_longrope.data import load_tokenizer
from megatron_longrope.model import document_logits, score_documents
from megatron_longrope.presets import model_path
from megatron_longrope.rope import FactorOrigin, FactorRange, FactorSet, RopeFactors
from megatron_longrope.runtime import start_runtime

pytestmark = pytest.mark.timeout(420)
DEMO = model_path("preset:demo")
LONG = 8192


def _factors(growth: float, target: int) -> RopeFactors:
    rescale = tuple(round(1 + growth * (pair / 31) ** 2, 2) for pair in range(32))
    return RopeFactors(
        rescale=rescale,
        attention_factor=1.2,
        original_length=256,
        target_length=target,
        base=10000.0,
        head_dim=64,
        origin=FactorOrigin(method="test"),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model with a short and a long factor set, as an HF folder."""
    folder = tmp_path_factory.mktemp("demo")
    with start_runtime(threads=1) as runtime:
        import_hf(DEMO, folder / "megatron", runtime)
    sets = FactorSet(
        ranges=(
            FactorRange(up_to=256, factors=_factors(0.5, 256)),
            FactorRange(up_to=None, factors=_factors(30.0, LONG)),
        )
    )
    export_hf(folder / "megatron", folder / "exported", sets)
    return folder / "exported"


def test_to_megatron_and_back_is_bit_identical(tmp_path: Path) -> None:
    with start_runtime(threads=1) as runtime:
        import_hf(DEMO, tmp_path / "megatron", runtime)
    export_hf(tmp_path / "megatron", tmp_path / "back")
    assert all_equal(verify(DEMO, tmp_path / "back"))
    # safetensors' own reader; in the file tensors may stand in another order
    before, after = (
        load_file(folder / "model.safetensors") for folder in (DEMO, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name


def test_it_fits_the_repository_and_its_claims() -> None:
    assert (DEMO / "model.safetensors").stat().st_size <= 12e6
    assert load_tokenizer(DEMO).vocab_size == 2048


def test_transformers_gives_our_numbers(exported: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    text = split().development[0].text
    tokens = load_tokenizer(DEMO).encode_document(text)[:LONG]
    with start_runtime(threads=1) as runtime:
        hf = load_model(exported, runtime, angle_precision="hf").model
        exact = load_model(exported, runtime).model
        for length in (100, 256, 257, 512, 2048, LONG):
            inputs = torch.from_numpy(tokens[:length])
            with torch.no_grad():
                logits = theirs(inputs[None]).logits[0]
            losses = cross_entropy(logits[:-1], inputs[1:], reduction="none").double().numpy()
            (same,) = score_documents(hf, [tokens[:length]])
            (ours,) = score_documents(exact, [tokens[:length]])
            assert np.abs(same.nll - losses).max() < 1e-4
            assert (
                abs(math.exp(ours.nll.mean(dtype=np.float64)) / math.exp(losses.mean()) - 1) < 1e-5
            )
            if length <= 512:
                assert np.abs(document_logits(hf, tokens[:length]) - logits.numpy()).max() < 1e-4
            difference = np.abs(document_logits(exact, tokens[:length]) - logits.numpy()).max()
            print(f"{length} tokens: float64 angles move a logit by at most {difference:.1e}")
            assert difference < 2e-2
