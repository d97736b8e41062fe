"""The Seed-OSS family: Qwen2's weights without windows, pretrained for 512k tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_longrope.model.architectures.base import ARCHITECTURES, Architecture
from megatron_longrope.model.architectures.qwen2 import Qwen2

if TYPE_CHECKING:
    from megatron_longrope.model.shape import ModelShape


class SeedOss(Architecture):
    """Seed-OSS; `head_dim` does not follow from the hidden size, so a config has it.

    A Megatron-LM checkpoint has the same arguments as one of Qwen2, and is read as Qwen2.
    """

    model_type = "seed_oss"
    hf_class = "SeedOssForCausalLM"
    weights = Qwen2.weights
    # Any dropout is read, unlike in other families: transformers' default is 0.1, which acts while
    # transformers trains the model and never in a forward pass that is compared with ours.
    only: ClassVar[Mapping[str, object]] = {
        "hidden_act": "silu",
        "quantization_config": None,
        "attention_bias": True,
        "attention_out_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
    }
    unwritten = ("pretraining_tp",)
    must_say = ("num_key_value_heads", "head_dim")

    def write(self, shape: ModelShape) -> dict[str, Any]:
        """Returns the config with dropout switched off, as in our training."""
        return super().write(shape) | {"attention_dropout": 0.0, "residual_dropout": 0.0}


ARCHITECTURES.register(SeedOss.model_type, SeedOss())
