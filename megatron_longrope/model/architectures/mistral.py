"""The Mistral family: Llama's weights, with one sliding window for every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_longrope.model.architectures.base import ARCHITECTURES, COMMON_ONLY, Architecture
from megatron_longrope.model.architectures.llama import Llama
from megatron_longrope.model.architectures.settings import Config
from megatron_longrope.model.architectures.windows import Windows, read_uniform, write_uniform

if TYPE_CHECKING:
    from megatron_longrope.model.shape import ModelShape


class Mistral(Architecture):
    """Mistral; a config without a window means one of 4096 tokens, as in transformers."""

    model_type = "mistral"
    hf_class = "MistralForCausalLM"
    weights = Llama.weights
    only = COMMON_ONLY | {"layer_types": None}
    must_say = ("num_key_value_heads",)
    megatron_flags = frozenset({"window_size"})
    gguf_architecture = "llama"

    def read_windows(self, config: Config, layers: int) -> Windows:
        """Returns `sliding_window` for every layer."""
        return read_uniform(config, layers, default=4096)

    def write_attention(self, shape: ModelShape) -> dict[str, Any]:
        """Returns `sliding_window`; raises InputError where layers differ."""
        return write_uniform(shape.attention_windows)


ARCHITECTURES.register(Mistral.model_type, Mistral())
