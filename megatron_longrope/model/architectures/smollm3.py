"""The SmolLM3 family: Llama's weights; some layers have no RoPE, and these may have a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_longrope.errors import InputError
from megatron_longrope.model.architectures.base import ARCHITECTURES, COMMON_ONLY, Architecture
from megatron_longrope.model.architectures.llama import Llama
from megatron_longrope.model.architectures.settings import Config, is_count, short
from megatron_longrope.model.architectures.windows import (
    Windows,
    by_layer_types,
    write_layer_types,
)

if TYPE_CHECKING:
    from megatron_longrope.model.shape import ModelShape


class SmolLM3(Architecture):
    """SmolLM3; every fourth layer has no RoPE, unless the config names others."""

    model_type = "smollm3"
    hf_class = "SmolLM3ForCausalLM"
    weights = Llama.weights
    only = COMMON_ONLY | {"attention_bias": False, "mlp_bias": False}
    must_say = ("num_key_value_heads",)
    ties_by_default = True
    rope_base = None
    megatron_flags = frozenset({"no_rope_freq"})
    megatron_may_set = frozenset({"window_size"})

    def read_rope_free_layers(self, config: Config, layers: int) -> tuple[int, ...]:
        """Returns the layers that `no_rope_layers` marks with 0; without that, every n-th layer."""
        said = config.get("no_rope_layers")
        if said is None:
            interval = config.get("no_rope_layer_interval", 4)
            if not is_count(interval):
                rule = "a positive whole number"
                raise InputError("config.no_rope_layer_interval", interval, rule)
            return tuple(range(interval - 1, layers, interval))
        if (
            not isinstance(said, list)
            or len(said) != layers
            or any(entry not in (0, 1) for entry in said)
        ):
            rule = f"a 1 (rotates) or 0 for each of {layers} layers"
            raise InputError("config.no_rope_layers", short(said), rule)
        return tuple(layer for layer, rotates in enumerate(said) if not rotates)

    def read_windows(self, config: Config, layers: int) -> Windows:
        """Returns the windows of the layers without RoPE, or of those that layer_types names."""
        window = config.get("sliding_window") if config.get("use_sliding_window", False) else None
        rope_free = self.read_rope_free_layers(config, layers)
        slides = [window is not None and layer in rope_free for layer in range(layers)]
        return by_layer_types(config, window, slides)

    def write_attention(self, shape: ModelShape) -> dict[str, Any]:
        """Returns the config keys of windows, and `no_rope_layers`."""
        layers = range(shape.num_layers)
        return write_layer_types(shape.attention_windows, shape.num_layers) | {
            "no_rope_layers": [int(layer not in shape.rope_free_layers) for layer in layers]
        }


ARCHITECTURES.register(SmolLM3.model_type, SmolLM3())
