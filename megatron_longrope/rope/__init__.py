"""Rotary embeddings: scaling methods, rescale factors, angles, Hugging Face configs.

Only the angles need torch, which is imported when one of their names is first used.

>>> geometry = RopeGeometry(base=10000.0, head_dim=8, original_length=4096)
>>> factors = PositionInterpolation(scale=4).factors(geometry)
>>> factors.rescale, factors.target_length
((4.0, 4.0, 4.0, 4.0), 16384)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from megatron_longrope.artifacts.factor_file import (
    factors_from_json,
    factors_to_json,
    read_factors,
    write_factors,
)
from megatron_longrope.artifacts.factors import (
    MAX_ATTENTION_FACTOR,
    FactorOrigin,
    FactorRange,
    FactorSet,
    RopeFactors,
)
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.rope.hf import factor_set_from_hf, geometry_from_hf, method_from_hf
from megatron_longrope.rope.hf_export import hf_rope_config, short_and_long
from megatron_longrope.rope.method_text import method_from_text
from megatron_longrope.rope.methods import (
    METHODS,
    DynamicNtk,
    Llama3,
    LongRope,
    NoScaling,
    NtkAware,
    PositionInterpolation,
    RopeMethod,
    Yarn,
)
from megatron_longrope.rope.methods.longrope import longrope_attention_factor
from megatron_longrope.rope.own_scaling import OwnScaling
from megatron_longrope.rope.published import (
    PublishedSet,
    find_factors,
    published_factors,
    published_names,
    published_sets,
    resolve_factors,
)

if TYPE_CHECKING:
    from megatron_longrope.rope.angles import (
        AnglePrecision,
        angle_derivatives,
        inverse_frequencies,
        rotary_angles,
    )

_ANGLES = ("AnglePrecision", "angle_derivatives", "inverse_frequencies", "rotary_angles")

__all__ = [
    "MAX_ATTENTION_FACTOR",
    "METHODS",
    "AnglePrecision",
    "DynamicNtk",
    "FactorOrigin",
    "FactorRange",
    "FactorSet",
    "Llama3",
    "LongRope",
    "NoScaling",
    "NtkAware",
    "OwnScaling",
    "PositionInterpolation",
    "PublishedSet",
    "RopeFactors",
    "RopeGeometry",
    "RopeMethod",
    "Yarn",
    "angle_derivatives",
    "factor_set_from_hf",
    "factors_from_json",
    "factors_to_json",
    "find_factors",
    "geometry_from_hf",
    "hf_rope_config",
    "inverse_frequencies",
    "longrope_attention_factor",
    "method_from_hf",
    "method_from_text",
    "published_factors",
    "published_names",
    "published_sets",
    "read_factors",
    "resolve_factors",
    "rotary_angles",
    "short_and_long",
    "write_factors",
]


def __getattr__(name: str) -> Any:
    """Imports the angles, and torch with them, when one of their names is first used."""
    if name in _ANGLES:
        return getattr(importlib.import_module("megatron_longrope.rope.angles"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
