"""Rotary embeddings: geometry, rescale factors and their files, angles, scaling methods, Hugging
Face configs."""

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
from megatron_longrope.rope.angles import (
    AnglePrecision,
    angle_derivatives,
    inverse_frequencies,
    rotary_angles,
)
from megatron_longrope.rope.hf import (
    factor_set_from_hf,
    geometry_from_hf,
    hf_rope_config,
    method_from_hf,
)
from megatron_longrope.rope.hf_export import short_and_long
from megatron_longrope.rope.methods import (
    METHOD_NAMES,
    DynamicNtk,
    Llama3,
    LongRope,
    NoScaling,
    NtkAware,
    PositionInterpolation,
    RopeMethod,
    Yarn,
    longrope_attention_factor,
    method_from_text,
)
from megatron_longrope.rope.published import (
    PublishedSet,
    published_factors,
    published_names,
    published_sets,
)

__all__ = [
    "MAX_ATTENTION_FACTOR",
    "METHOD_NAMES",
    "AnglePrecision",
    "DynamicNtk",
    "FactorOrigin",
    "FactorRange",
    "FactorSet",
    "Llama3",
    "LongRope",
    "NoScaling",
    "NtkAware",
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
    "rotary_angles",
    "short_and_long",
    "write_factors",
]
