"""Rotary geometry, rescale factors and their files, angles."""

from megatron_longrope.rope.angles import AnglePrecision, inverse_frequencies, rotary_angles
from megatron_longrope.rope.factor_file import factors_from_json, factors_to_json, read_factors, write_factors
from megatron_longrope.rope.factors import FactorOrigin, FactorRange, FactorSet, RopeFactors
from megatron_longrope.rope.geometry import RopeGeometry

__all__ = [
    "AnglePrecision",
    "FactorOrigin",
    "FactorRange",
    "FactorSet",
    "RopeFactors",
    "RopeGeometry",
    "factors_from_json",
    "factors_to_json",
    "inverse_frequencies",
    "read_factors",
    "rotary_angles",
    "write_factors",
]
