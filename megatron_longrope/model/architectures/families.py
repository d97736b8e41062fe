"""The model families this project carries: what each Hugging Face config means, and how it is
written back.

transformers gives silent defaults that differ between families; each stands here once. What a
family's config can say and our model cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_longrope.errors import InputError

ArchitectureName = Literal["llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3"]
Windows = tuple[int | None, ...]
"""Tokens each layer's attention reaches back, itself included; None: all. Empty: None for every
layer."""
Config = Mapping[str, Any]
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Architecture:
    """One family. `must_be`: settings with the only value carried; `must_say`: no default to fall
    back on."""

    hf_class: str
    qkv_bias: bool = False
    qk_norm: bool = False
    fused_projections: bool = False
    """Whether HF keeps q, k, v in one weight and gate, up in another."""
    ties_by_default: bool = False
    norm_epsilon: float = 1e-6
    must_say: tuple[str, ...] = ()
    must_be: Mapping[str, object] = field(default_factory=dict)
    read_windows: Callable[[Config, int], Windows] = lambda config, layers: ()
    write_windows: Callable[[Windows, int], dict[str, Any]] = lambda windows, layers: {}
    rope_types: frozenset[str] | None = None
    """Those transformers accepts for this family; None: every one."""


def attention_settings(
    name: ArchitectureName, windows: Windows, rope_free: Sequence[int], layers: int
) -> Config:
    """Returns the HF config keys for windows and for layers without RoPE."""
    settings = ARCHITECTURES[name].write_windows(windows, layers)
    if name == "smollm3":
        settings |= {"no_rope_layers": [int(layer not in rope_free) for layer in range(layers)]}
    return settings


def read_rope_free_layers(name: str, config: Config, layers: int) -> tuple[int, ...]:
    """Returns the layers that do not rotate, counted from 0; SmolLM3 alone has them."""
    if name != "smollm3":
        return ()
    said = config.get("no_rope_layers")
    if said is None:
        interval = config.get("no_rope_layer_interval", 4)
        if not _is_count(interval):
            raise InputError("config.no_rope_layer_interval", interval, "a positive whole number")
        return tuple(range(interval - 1, layers, interval))
    if (
        not isinstance(said, list)
        or len(said) != layers
        or any(entry not in (0, 1) for entry in said)
    ):
        raise InputError(
            "config.no_rope_layers", _short(said), f"a 1 (rotates) or 0 for each of {layers} layers"
        )
    return tuple(layer for layer, rotates in enumerate(said) if not rotates)


def _uniform_windows(default: int | None) -> Callable[[Config, int], Windows]:
    def read(config: Config, layers: int) -> Windows:
        window = config.get("sliding_window", default)
        return () if window is None else (_window(window),) * layers

    return read


def _write_uniform(windows: Windows, layers: int) -> dict[str, Any]:
    if len(set(windows)) > 1:
        raise InputError(
            "attention_windows", _short(windows), "this architecture has one window for all layers"
        )
    return {"sliding_window": windows[0] if windows else None}


def _qwen_windows(config: Config, layers: int) -> Windows:
    """transformers: from `max_window_layers` on, unless layer_types says which."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    first = config.get("max_window_layers", 28)
    if not isinstance(first, int) or first < 0:
        raise InputError("config.max_window_layers", first, "a whole number of at least 0")
    slides = [window is not None and layer >= first for layer in range(layers)]
    return _by_layer_types(config, window, slides)


def _smollm3_windows(config: Config, layers: int) -> Windows:
    """transformers: the layers without RoPE, unless layer_types says which."""
    window = config.get("sliding_window") if config.get("use_sliding_window", False) else None
    rope_free = read_rope_free_layers("smollm3", config, layers)
    return _by_layer_types(
        config, window, [window is not None and layer in rope_free for layer in range(layers)]
    )


def _by_layer_types(config: Config, window: object, slides: list[bool]) -> Windows:
    types = config.get("layer_types")
    if types is not None:
        if (
            not isinstance(types, list)
            or len(types) != len(slides)
            or not {*map(str, types)} <= {_FULL, _SLIDING}
        ):
            raise InputError(
                "config.layer_types",
                _short(types),
                f"{_FULL} or {_SLIDING} for each of {len(slides)}",
            )
        slides = [kind == _SLIDING for kind in types]
    if not any(slides):
        return ()
    if window is None:
        raise InputError(
            "config.layer_types",
            _SLIDING,
            "use_sliding_window is off or there is no sliding_window",
        )
    return tuple(_window(window) if slide else None for slide in slides)


def _write_layer_types(windows: Windows, layers: int) -> dict[str, Any]:
    sizes = {window for window in windows if window is not None}
    if len(sizes) > 1:
        raise InputError(
            "attention_windows",
            sorted(sizes),
            "transformers knows one window size in this architecture",
        )
    types = [_FULL if window is None else _SLIDING for window in windows] or [_FULL] * layers
    return {
        "use_sliding_window": bool(sizes),
        "sliding_window": sizes.pop() if sizes else None,
        "layer_types": types,
    }


def _write_qwen(windows: Windows, layers: int) -> dict[str, Any]:
    first = next((layer for layer, window in enumerate(windows) if window is not None), layers)
    return _write_layer_types(windows, layers) | {"max_window_layers": first}


def _window(value: object) -> int:
    if not _is_count(value):
        raise InputError("config.sliding_window", value, "a positive number of tokens, or null")
    return value  # type: ignore[return-value]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


_NO_BIAS = {"attention_bias": False, "mlp_bias": False}
_KV_HEADS = ("num_key_value_heads",)
ARCHITECTURES: dict[ArchitectureName, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", must_be=_NO_BIAS | {"pretraining_tp": 1}),
    "mistral": Architecture(
        "MistralForCausalLM",
        must_say=_KV_HEADS,
        must_be={"layer_types": None},
        read_windows=_uniform_windows(4096),
        write_windows=_write_uniform,
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        must_say=_KV_HEADS,
        read_windows=_qwen_windows,
        write_windows=_write_qwen,
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        qk_norm=True,
        must_say=(*_KV_HEADS, "head_dim"),
        must_be={"attention_bias": False},
        read_windows=_qwen_windows,
        write_windows=_write_qwen,
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        fused_projections=True,
        norm_epsilon=1e-5,
        must_be={"resid_pdrop": 0.0, "embd_pdrop": 0.0},
        read_windows=_uniform_windows(None),
        write_windows=_write_uniform,
        rope_types=frozenset({"default", "longrope", "su"}),
    ),
    "smollm3": Architecture(
        "SmolLM3ForCausalLM",
        ties_by_default=True,
        must_say=_KV_HEADS,
        must_be=_NO_BIAS,
        read_windows=_smollm3_windows,
        write_windows=_write_layer_types,
    ),
}
COMMON_MUST_BE: Mapping[str, object] = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "quantization_config": None,
}
