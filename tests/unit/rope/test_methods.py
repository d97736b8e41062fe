"""Every scaling method against transformers' own functions, a 50-digit oracle, and bit for bit in
hf precision."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_longrope.rope import (
    DynamicNtk,
    Llama3,
    LongRope,
    NoScaling,
    NtkAware,
    PositionInterpolation,
    RopeGeometry,
    RopeMethod,
    Yarn,
    inverse_frequencies,
    longrope_attention_factor,
    rotary_angles,
)

GEOMETRIES = [
    RopeGeometry(base=10_000.0, head_dim=64, original_length=256),
    RopeGeometry(base=10_000.0, head_dim=128, original_length=4096),
    RopeGeometry(base=500_000.0, head_dim=128, original_length=8192),
    RopeGeometry(base=1_000_000.0, head_dim=80, original_length=1000),
    RopeGeometry(base=100_000.0, head_dim=16, original_length=2048),
]


def lists(geometry: RopeGeometry) -> dict[str, list[float]]:
    pairs = geometry.num_pairs
    return {
        "short_factor": [1 + 0.011 * i for i in range(pairs)],
        "long_factor": [1 + 0.37 * i for i in range(pairs)],
    }


def cases(geometry: RopeGeometry) -> list[tuple[RopeMethod, dict[str, Any]]]:
    """Our method and transformers' settings for the same."""
    two = lists(geometry)
    longrope = {"short": tuple(two["short_factor"]), "long": tuple(two["long_factor"])}
    return [
        (NoScaling(), {"rope_type": "default"}),
        (PositionInterpolation(scale=3.7), {"rope_type": "linear", "factor": 3.7}),
        (PositionInterpolation(scale=8), {"rope_type": "linear", "factor": 8}),
        (DynamicNtk(factor=2.3), {"rope_type": "dynamic", "factor": 2.3}),
        (DynamicNtk(factor=1), {"rope_type": "dynamic", "factor": 1.0}),
        (Yarn(scale=4), {"rope_type": "yarn", "factor": 4.0}),
        (Yarn(scale=7.5, truncate=False), {"rope_type": "yarn", "factor": 7.5, "truncate": False}),
        (
            Yarn(scale=40, beta_fast=16, beta_slow=2, mscale=0.707, mscale_all_dim=1.0),
            {
                "rope_type": "yarn",
                "factor": 40.0,
                "beta_fast": 16,
                "beta_slow": 2,
                "mscale": 0.707,
                "mscale_all_dim": 1.0,
            },
        ),
        (
            Yarn(scale=2, attention_factor=1.25),
            {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.25},
        ),
        (
            Llama3(factor=8, low_freq_factor=1, high_freq_factor=4),
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        ),
        (
            Llama3(factor=32, low_freq_factor=0.5, high_freq_factor=7),
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 0.5,
                "high_freq_factor": 7.0,
            },
        ),
        (LongRope(**longrope, scale=16), {"rope_type": "longrope", "factor": 16.0, **two}),
        (
            LongRope(**longrope, scale=16, attention_factor=1.07),
            {"rope_type": "longrope", "factor": 16.0, "attention_factor": 1.07, **two},
        ),
    ]


def llama_config(geometry: RopeGeometry, settings_: dict[str, Any]) -> LlamaConfig:
    parameters = {**settings_, "rope_theta": geometry.base}
    window = geometry.original_length
    longest = window
    if settings_["rope_type"] in ("yarn", "llama3", "longrope"):
        parameters["original_max_position_embeddings"] = window
        longest = int(window * settings_["factor"])
    return LlamaConfig(
        hidden_size=2 * geometry.head_dim,
        num_attention_heads=2,
        num_hidden_layers=1,
        head_dim=geometry.head_dim,
        max_position_embeddings=longest,
        rope_parameters=parameters,
    )


ALL = [
    pytest.param(
        geometry, method, settings_, id=f"{method.name}{k}-{geometry.head_dim}-{geometry.base:g}"
    )
    for geometry in GEOMETRIES[:4]
    for k, (method, settings_) in enumerate(cases(geometry))
]


@pytest.mark.parametrize(("geometry", "method", "settings_"), ALL)
def test_frequencies_and_temperature_are_transformers(
    geometry: RopeGeometry, method: RopeMethod, settings_: dict[str, Any]
) -> None:
    config = llama_config(geometry, settings_)
    for length in (
        geometry.original_length,
        geometry.original_length + 1,
        5 * geometry.original_length,
    ):
        factors = method.factors(geometry, length)
        if settings_["rope_type"] == "default":
            theirs, temperature = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            theirs, temperature = ROPE_INIT_FUNCTIONS[settings_["rope_type"]](
                config, None, seq_len=length
            )
        rescale = torch.tensor(factors.rescale, dtype=torch.float64)
        ours = inverse_frequencies(geometry.base, geometry.head_dim) / rescale
        torch.testing.assert_close(ours, theirs.double(), rtol=3e-6, atol=0)
        assert factors.attention_factor == pytest.approx(temperature, rel=1e-12)


@pytest.mark.parametrize(("geometry", "method", "settings_"), ALL)
def test_hf_precision_repeats_transformers_bit_for_bit(
    geometry: RopeGeometry, method: RopeMethod, settings_: dict[str, Any]
) -> None:
    embedding = LlamaRotaryEmbedding(llama_config(geometry, settings_))
    window, pairs = geometry.original_length, geometry.num_pairs
    for length in (window - 1, window, window + 1, 3 * window + 7):
        positions = torch.linspace(0, length - 1, 101).long()[None]
        cos, sin = embedding(torch.zeros(1), positions)
        factors = method.factor_set(geometry, length).for_length(length)
        angles = rotary_angles(positions, factors, "hf")
        assert torch.equal(angles.cos() * factors.attention_factor, cos[..., :pairs])
        assert torch.equal(angles.sin() * factors.attention_factor, sin[..., :pairs])


def exact_pi(i: int, geometry: RopeGeometry) -> mpmath.mpf:
    return mpmath.mpf(5)


def exact_ntk(i: int, geometry: RopeGeometry) -> mpmath.mpf:
    """θ_i over the frequency of the base base·5^(d/(d-2))."""
    d = mpmath.mpf(geometry.head_dim)
    base = mpmath.mpf(geometry.base)
    return mpmath.power(base * mpmath.power(5, d / (d - 2)), 2 * i / d) / mpmath.power(
        base, 2 * i / d
    )


def exact_yarn(i: int, geometry: RopeGeometry) -> mpmath.mpf:
    """Paper's NTK-by-parts with whole-pair ends: λ from 1/λ = (1-r) + r/5."""
    d, base, window = (
        mpmath.mpf(v) for v in (geometry.head_dim, geometry.base, geometry.original_length)
    )

    def pair(turns: int) -> mpmath.mpf:
        return d * mpmath.log(window / (turns * 2 * mpmath.pi)) / (2 * mpmath.log(base))

    low, high = max(mpmath.floor(pair(32)), 0), min(mpmath.ceil(pair(1)), d - 1)
    ramp = min(max((i - low) / (high - low), mpmath.mpf(0)), mpmath.mpf(1))
    return 1 / ((1 - ramp) + ramp / 5)


def exact_llama3(i: int, geometry: RopeGeometry) -> mpmath.mpf:
    wavelength = 2 * mpmath.pi * mpmath.power(geometry.base, mpmath.mpf(2 * i) / geometry.head_dim)
    window = geometry.original_length
    if wavelength < mpmath.mpf(window) / 4:
        return mpmath.mpf(1)
    if wavelength > window:
        return mpmath.mpf(5)
    smooth = (window / wavelength - 1) / 3
    return 1 / ((1 - smooth) / 5 + smooth)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g.head_dim}-{g.base:g}")
@pytest.mark.parametrize(
    ("method", "oracle"),
    [
        (PositionInterpolation(scale=5), exact_pi),
        (NtkAware(scale=5), exact_ntk),
        (Yarn(scale=5), exact_yarn),
        (Llama3(factor=5), exact_llama3),
    ],
    ids=["pi", "ntk", "yarn", "llama3"],
)
def test_rescale_factors_match_the_fifty_digit_oracle(
    geometry: RopeGeometry, method: RopeMethod, oracle: Any
) -> None:
    with mpmath.workdps(50):
        exact = [float(oracle(i, geometry)) for i in range(geometry.num_pairs)]
    assert method.factors(geometry).rescale == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g.head_dim}-{g.base:g}")
def test_plain_ntk_is_dynamic_with_factor_one(geometry: RopeGeometry) -> None:
    config = llama_config(geometry, {"rope_type": "dynamic", "factor": 1.0})
    theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, None, seq_len=6 * geometry.original_length)
    factors = NtkAware(scale=6).factors(geometry)
    ours = inverse_frequencies(geometry.base, geometry.head_dim) / torch.tensor(
        factors.rescale, dtype=torch.float64
    )
    torch.testing.assert_close(ours, theirs.double(), rtol=3e-6, atol=0)
    assert (
        DynamicNtk(factor=1).factors(geometry, 6 * geometry.original_length).rescale
        == factors.rescale
    )


def methods_of(scale: float) -> list[RopeMethod]:
    return [
        PositionInterpolation(scale=scale),
        NtkAware(scale=scale),
        DynamicNtk(factor=scale),
        Yarn(scale=scale),
        Llama3(factor=scale),
    ]


@given(
    scale=st.floats(1, 512),
    base=st.floats(1e3, 1e8),
    half=st.integers(2, 128),
    window=st.integers(64, 131_072),
    times=st.floats(0.1, 100),
)
@settings(max_examples=25, deadline=None)
def test_methods_are_monotone_and_stay_between_one_and_the_scale(
    scale: float, base: float, half: int, window: int, times: float
) -> None:
    geometry = RopeGeometry(base=base, head_dim=2 * half, original_length=window)
    length = max(1, int(times * window))
    for method in methods_of(scale):
        factors = method.factors(geometry, length)
        most = (
            max(1.0, scale * length / window - scale + 1)
            if isinstance(method, DynamicNtk)
            else scale
        )
        assert factors.is_monotone, method
        assert min(factors.rescale) >= 1 - 1e-12
        assert max(factors.rescale) <= most * (1 + 1e-9)
        assert factors.attention_factor >= 1


@given(half=st.integers(2, 64), window=st.integers(64, 8192))
@settings(max_examples=10, deadline=None)
def test_scale_one_changes_nothing(half: int, window: int) -> None:
    geometry = RopeGeometry(base=1e4, head_dim=2 * half, original_length=window)
    for method in methods_of(1.0):
        assert method.factors(geometry, window).is_identity, method


def test_llama3_at_the_edge_of_its_blend_keeps_transformers_rounding() -> None:
    """There float32 loses four digits to cancellation: λ is exact and the float32 frequencies are
    still accepted."""
    geometry = RopeGeometry(base=88392208.14429675, head_dim=110, original_length=98339)
    factors = Llama3(factor=417.0209990588916).factors(geometry)
    assert factors.hf_inverse_frequencies is not None
    exact = [
        1 / (geometry.base ** (2 * i / 110) * rescale) for i, rescale in enumerate(factors.rescale)
    ]
    errors = [abs(a / b - 1) for a, b in zip(factors.hf_inverse_frequencies, exact, strict=True)]
    assert 1e-5 < max(errors) < 1e-4


def test_temperatures() -> None:
    geometry = GEOMETRIES[1]
    assert Yarn(scale=8).factors(geometry).attention_factor == 0.1 * math.log(8) + 1
    assert longrope_attention_factor(64, 4096) == math.sqrt(1 + 1 / 2)
    assert longrope_attention_factor(1, 4096) == 1.0
    assert {
        m.factors(geometry).attention_factor for m in methods_of(8) if not isinstance(m, Yarn)
    } == {1.0}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PositionInterpolation, {"scale": 0.5}),
        (NtkAware, {"scale": math.inf}),
        (Yarn, {"scale": 2, "beta_fast": 1, "beta_slow": 1}),
        (Llama3, {"factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
        (Yarn, {"scale": 2, "beta": 3}),
    ],
)
def test_wrong_settings_are_refused(kind: type[RopeMethod], values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        kind(**values)
