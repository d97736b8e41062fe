"""The Qwen2 family, 2.5 included: biases of queries, keys and values, windows from a layer on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from megatron_longrope.errors import InputError
from megatron_longrope.model.architectures.base import ARCHITECTURES, Architecture
from megatron_longrope.model.architectures.settings import Config
from megatron_longrope.model.architectures.weights import (
    EMBEDDING,
    FC1,
    FC2,
    FINAL_NORM,
    IN_NORM,
    MLP_NORM,
    OUTPUT,
    PROJ,
    QKV,
    QKV_BIAS,
    WeightRule,
)
from megatron_longrope.model.architectures.windows import (
    Windows,
    by_layer_types,
    write_layer_types,
)

if TYPE_CHECKING:
    from megatron_longrope.model.shape import ModelShape


class Qwen2(Architecture):
    """Qwen2; layers from `max_window_layers` on have a window, or those that layer_types names."""

    model_type = "qwen2"
    hf_class = "Qwen2ForCausalLM"
    weights: ClassVar[tuple[WeightRule, ...]] = (
        *(EMBEDDING, IN_NORM, QKV, QKV_BIAS, PROJ),
        *(MLP_NORM, FC1, FC2, FINAL_NORM, OUTPUT),
    )
    must_say: ClassVar[tuple[str, ...]] = ("num_key_value_heads",)
    megatron_flags = frozenset({"add_qkv_bias"})
    megatron_may_set = frozenset({"window_size"})

    def read_windows(self, config: Config, layers: int) -> Windows:
        """Returns the windows of the layers that layer_types or `max_window_layers` names."""
        slides = config.get("use_sliding_window", False)
        window = config.get("sliding_window", 4096) if slides else None
        first = config.get("max_window_layers", 28)
        if not isinstance(first, int) or first < 0:
            raise InputError("config.max_window_layers", first, "a whole number of at least 0")
        sliding = [window is not None and layer >= first for layer in range(layers)]
        return by_layer_types(config, window, sliding)

    def write_attention(self, shape: ModelShape) -> dict[str, Any]:
        """Returns layer_types, and the keys that older releases of transformers read instead."""
        windows, layers = shape.attention_windows, shape.num_layers
        first = next((layer for layer, window in enumerate(windows) if window is not None), layers)
        return write_layer_types(windows, layers) | {"max_window_layers": first}


ARCHITECTURES.register(Qwen2.model_type, Qwen2())
