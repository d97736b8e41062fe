"""Fresh weights of the retrieval scheme."""

from __future__ import annotations

import math

import pytest
import torch

from checkpoints_tools.initialize import initial_weights
from megatron_longrope.model import ModelShape
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import single_runtime

runtime = pytest.fixture(scope="module")(single_runtime)


def test_the_retrieval_start_repeats_what_came_before(runtime: Runtime) -> None:
    """Untrained, it already predicts the second saying of a random passage far better than a plain
    start does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = ModelShape(
        num_layers=2,
        hidden_size=256,
        ffn_hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=512,
        context_length=256,
    )
    passage = torch.randint(0, 512, (8, 40), generator=torch.Generator().manual_seed(1))
    twice = torch.cat([passage, passage], dim=1)
    losses = {}
    for scheme in ("normal", "retrieval"):
        model = LlamaForCausalLM(
            LlamaConfig(**{k: v for k, v in shape.to_hf().items() if k != "architectures"})
        )
        weights = initial_weights(shape, scheme, 1)  # type: ignore[arg-type]
        model.load_state_dict(weights)
        assert all(
            torch.equal(weights[name], value)
            for name, value in initial_weights(shape, scheme, 1).items()
        )  # type: ignore[arg-type]
        with torch.no_grad():
            logits = model(twice).logits[:, 40:-1]
        losses[scheme] = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), twice[:, 41:].flatten()
        ).item()
    assert losses["normal"] > math.log(512) - 0.3 and losses["retrieval"] < 0.8 * math.log(512)
