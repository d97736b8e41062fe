"""The Phi-3 family: fused projections, one window for every layer, LongRoPE factors in configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrope.model.architectures.base import ARCHITECTURES, COMMON_ONLY, Architecture
from megatron_longrope.model.architectures.settings import Config
from megatron_longrope.model.architectures.weights import (
    EMBEDDING,
    FC2,
    FINAL_NORM,
    FUSED_FC1,
    FUSED_QKV,
    IN_NORM,
    MLP_NORM,
    OUTPUT,
    PROJ,
)
from megatron_longrope.model.architectures.windows import Windows, read_uniform, write_uniform

if TYPE_CHECKING:
    from megatron_longrope.model.shape import ModelShape

_FIRST_NAME = "su"
"""Name of `longrope` in the first configs of Phi-3."""
_TRANSFORMERS_4_KEYS = ("type", "short_factor", "long_factor")
"""The only rotary settings that transformers 4 accepts for Phi-3."""


class Phi3(Architecture):
    """Phi-3 and 3.5 mini; q, k and v are one weight in Hugging Face, gate and up another."""

    model_type = "phi3"
    hf_class = "Phi3ForCausalLM"
    weights = (
        *(EMBEDDING, IN_NORM, FUSED_QKV, PROJ),
        *(MLP_NORM, FUSED_FC1, FC2, FINAL_NORM, OUTPUT),
    )
    only = COMMON_ONLY | {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
    norm_epsilon = 1e-5
    rope_types = frozenset({"default", "longrope", _FIRST_NAME})

    def read_windows(self, config: Config, layers: int) -> Windows:
        """Returns `sliding_window` for every layer."""
        return read_uniform(config, layers, default=None)

    def write_attention(self, shape: ModelShape) -> dict[str, Any]:
        """Returns `sliding_window`; raises InputError where layers differ."""
        return write_uniform(shape.attention_windows)

    def with_rope_said(self, config: Config) -> Config:
        """Returns the config with its rotary base, and with longrope under the name it has now."""
        said = dict(super().with_rope_said(config))
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(said.get(key), Mapping):
                said[key] = _renamed(said[key])
        return said

    def serving_notes(self, config: Config) -> list[str]:
        """Returns a warning that transformers 4 refuses this config, where it does.

        Its Phi3Config accepts three keys only, and computes the attention factor from the lengths.
        """
        if len(config.get("rope_scaling") or ()) <= len(_TRANSFORMERS_4_KEYS):
            return []
        return [
            f"transformers 4 loads Phi-3 with {', '.join(_TRANSFORMERS_4_KEYS)} alone and refuses "
            "this one; transformers 5 loads it"
        ]


def _renamed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns rotary settings with the type under the name it has now.

    Settings whose `type` and `rope_type` differ are returned as they are, for `rope` to refuse.
    """
    names = {str(settings[key]) for key in ("rope_type", "type") if settings.get(key) is not None}
    if names != {_FIRST_NAME}:
        return settings
    rest = {key: value for key, value in settings.items() if key != "type"}
    return rest | {"rope_type": "longrope"}


ARCHITECTURES.register(Phi3.model_type, Phi3())
