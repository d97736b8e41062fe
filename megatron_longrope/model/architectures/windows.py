"""Sliding windows in Hugging Face configs, which express them in two ways.

`read_uniform` and `write_uniform` are for families with one window for all layers (Mistral, Phi-3),
`by_layer_types` and `write_layer_types` for those that choose layer by layer (Qwen, SmolLM3).
"""

from __future__ import annotations

from typing import Any

from megatron_longrope.errors import InputError
from megatron_longrope.model.architectures.settings import Config, is_count, short

Windows = tuple[int | None, ...]
"""Tokens the attention of each layer reaches back, the query included; None: all.

Empty: all, in every layer.
"""
_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_uniform(config: Config, layers: int, default: int | None) -> Windows:
    """Returns `sliding_window` for every layer; `default` is the window where it is left out."""
    window = config.get("sliding_window", default)
    return () if window is None else (_window(window),) * layers


def write_uniform(windows: Windows) -> dict[str, Any]:
    """Returns the key that `read_uniform` reads; raises InputError where layers differ."""
    if len(set(windows)) > 1:
        raise InputError(
            "attention_windows", short(windows), "this architecture has one window for all layers"
        )
    return {"sliding_window": windows[0] if windows else None}


def by_layer_types(config: Config, window: object, slides: list[bool]) -> Windows:
    """Returns `window` for the layers that have one, None for the others.

    The config's layer_types says which have one; `slides` does where there is no layer_types.
    """
    types = config.get("layer_types")
    if types is not None:
        if (
            not isinstance(types, list)
            or len(types) != len(slides)
            or not {*map(str, types)} <= {_FULL, _SLIDING}
        ):
            raise InputError(
                "config.layer_types",
                short(types),
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


def write_layer_types(windows: Windows, layers: int) -> dict[str, Any]:
    """Returns the keys that `by_layer_types` reads; raises InputError for windows of two sizes."""
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


def _window(value: object) -> int:
    if not isinstance(value, int) or not is_count(value):
        raise InputError("config.sliding_window", value, "a positive number of tokens, or null")
    return value
