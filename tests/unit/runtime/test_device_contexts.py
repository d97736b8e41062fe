"""The CPU platform leaves `with torch.device(...)` working: transformers builds its models inside
one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_longrope.runtime import cpu_platform
from tests.support.tiny_models import random_documents, tiny_hf_model


@pytest.fixture(autouse=True, scope="module")
def platform() -> None:
    import megatron_longrope.model  # noqa: F401

    cpu_platform.install()


def test_factories_follow_the_device_of_a_context() -> None:
    with torch.device("meta"):
        made = [
            torch.tensor([1.0]),
            torch.arange(3),
            torch.empty(2),
            torch.zeros(2),
            torch.full((2,), 1.0),
            torch.randn(2),
            torch.rand(2),
            torch.ones(2),
        ]
    assert {value.device.type for value in made} == {"meta"}


def test_transformers_loads_the_model_it_saved(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    saved = tiny_hf_model()
    saved.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.from_numpy(random_documents(40)[0])[None]
    assert torch.equal(loaded.model.rotary_emb.inv_freq, saved.model.rotary_emb.inv_freq)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, saved(tokens).logits)
