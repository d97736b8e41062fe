"""Rotary settings of HF configs of both generations, read and written; transformers reads back what
we write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_longrope.errors import InputError
from megatron_longrope.rope import (
    DynamicNtk,
    FactorOrigin,
    FactorRange,
    FactorSet,
    Llama3,
    LongRope,
    NoScaling,
    NtkAware,
    PositionInterpolation,
    RopeFactors,
    RopeGeometry,
    RopeMethod,
    Yarn,
    factor_set_from_hf,
    geometry_from_hf,
    hf_rope_config,
    method_from_hf,
    rotary_angles,
)

WINDOW, HEAD_DIM, BASE = 256, 16, 50_000.0
SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [1.0 + 2 * i for i in range(8)]
ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    ORIGINAL: WINDOW,
}
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, ORIGINAL: WINDOW}

SETTINGS: list[tuple[dict[str, Any], int, RopeMethod]] = [
    ({"rope_type": "default"}, WINDOW, NoScaling()),
    ({"rope_type": "linear", "factor": 4.0}, WINDOW, PositionInterpolation(scale=4)),
    ({"rope_type": "dynamic", "factor": 2.0}, WINDOW, DynamicNtk(factor=2)),
    ({"rope_type": "yarn", "factor": 4.0, ORIGINAL: WINDOW}, 4 * WINDOW, Yarn(scale=4)),
    ({"rope_type": "yarn", "factor": None, ORIGINAL: WINDOW}, 4 * WINDOW, Yarn(scale=4)),
    (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            ORIGINAL: WINDOW,
            "beta_fast": 8,
            "beta_slow": 2,
            "truncate": False,
        },
        4 * WINDOW,
        Yarn(scale=4, beta_fast=8, beta_slow=2, truncate=False),
    ),
    (LLAMA3, 16 * WINDOW, Llama3(factor=8)),
    (LONGROPE, 8 * WINDOW, LongRope(short=tuple(SHORT), long=tuple(LONG), scale=8)),
    (
        {**LONGROPE, "attention_factor": 1.2, "factor": 3.0},
        8 * WINDOW,
        LongRope(short=tuple(SHORT), long=tuple(LONG), scale=8, attention_factor=1.2),
    ),
]


def config_of(
    parameters: dict[str, Any] | None, longest: int = WINDOW, **more: Any
) -> dict[str, Any]:
    """A generation 5 config.json."""
    rope = None if parameters is None else {**parameters, "rope_theta": BASE}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": longest}
    return {"model_type": "llama", **sizes, "rope_parameters": rope, **more}


def old_config_of(
    parameters: dict[str, Any] | None, longest: int = WINDOW, **more: Any
) -> dict[str, Any]:
    """The same in generation 4."""
    config = config_of(None, longest, rope_theta=BASE, rope_scaling=parameters, **more)
    del config["rope_parameters"]
    return config


@pytest.mark.parametrize(("parameters", "longest", "method"), SETTINGS)
def test_both_generations_give_the_method(
    parameters: dict[str, Any], longest: int, method: RopeMethod
) -> None:
    geometry = RopeGeometry(base=BASE, head_dim=HEAD_DIM, original_length=WINDOW)
    old_style = {
        ("type" if key == "rope_type" else key): value for key, value in parameters.items()
    }
    for config in (
        config_of(parameters, longest),
        old_config_of(parameters, longest),
        old_config_of(old_style, longest),
        old_config_of(parameters, longest) | config_of(parameters, longest),
    ):
        assert method_from_hf(config) == (method, geometry)
        assert geometry_from_hf(config) == geometry
        expected, read = method.factor_set(geometry, longest), factor_set_from_hf(config, longest)
        for length in (1, WINDOW, WINDOW + 1, 10 * WINDOW):
            assert read.for_length(length).rescale == expected.for_length(length).rescale
            assert (
                read.for_length(length).attention_factor
                == expected.for_length(length).attention_factor
            )


@pytest.mark.parametrize(("parameters", "longest", "method"), SETTINGS)
def test_a_config_transformers_has_saved_reads_the_same(
    parameters: dict[str, Any], longest: int, method: RopeMethod, tmp_path: Path
) -> None:
    LlamaConfig(**config_of(dict(parameters), longest)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert factor_set_from_hf(saved, longest) == factor_set_from_hf(
        config_of(parameters, longest), longest
    )


@pytest.mark.parametrize(("parameters", "longest", "method"), SETTINGS)
def test_a_method_written_as_itself_reads_back_and_turns_the_same(
    parameters: dict[str, Any], longest: int, method: RopeMethod
) -> None:
    geometry = RopeGeometry(base=BASE, head_dim=HEAD_DIM, original_length=WINDOW)
    written = method.to_hf(geometry)
    assert written is not None and written["rope_type"] == parameters["rope_type"]
    config = config_of(written, longest)
    assert method_from_hf(config)[0].factor_set(geometry, longest) == method.factor_set(
        geometry, longest
    )
    embedding = LlamaRotaryEmbedding(LlamaConfig(**config))
    positions = torch.arange(0, longest, 7)[None]
    cos, _ = embedding(torch.zeros(1), positions)
    factors = method.factor_set(geometry, longest).for_length(int(positions.max()) + 1)
    angles = rotary_angles(positions, factors, "hf")
    assert torch.equal(angles.cos() * factors.attention_factor, cos[..., : geometry.num_pairs])


def test_a_method_transformers_does_not_know_is_not_written() -> None:
    geometry = RopeGeometry(base=BASE, head_dim=HEAD_DIM, original_length=WINDOW)
    assert NtkAware(scale=2).to_hf(geometry) is None


def test_lengths_of_what_was_read() -> None:
    llama = factor_set_from_hf(config_of(LLAMA3, 16 * WINDOW))
    assert (llama.geometry.original_length, llama.target_length) == (WINDOW, 16 * WINDOW)
    longrope = factor_set_from_hf(config_of(LONGROPE, 8 * WINDOW))
    assert [entry.up_to for entry in longrope.ranges] == [WINDOW, None]
    assert [entry.factors.target_length for entry in longrope.ranges] == [WINDOW, 8 * WINDOW]
    top_level = {key: value for key, value in LONGROPE.items() if key != ORIGINAL}
    assert factor_set_from_hf(config_of(top_level, 8 * WINDOW, **{ORIGINAL: WINDOW})) == longrope


def test_a_silent_base_is_refused() -> None:
    """What it means differs between families, which `model` knows (test_families.py)."""
    config = old_config_of(None)
    del config["rope_theta"]
    for family in ("llama", "mixtral"):
        with pytest.raises(InputError, match="rope_theta"):
            geometry_from_hf({**config, "model_type": family})


def test_a_smollm2_config_with_its_odd_key_is_read() -> None:
    assert (
        factor_set_from_hf(config_of(None, rope_theta=100_000, rope_interleaved=False))
        .ranges[0]
        .factors.is_identity
    )


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (config_of({"rope_type": "proportional"}), "rope_type"),
        (config_of({"rope_type": "su"}), "rope_type"),
        (config_of({"rope_type": "linear", "type": "yarn", "factor": 2.0}), "rope_type"),
        (config_of({"rope_type": "linear", "factor": 2.0, "beta_fast": 3}), "beta_fast"),
        (config_of({"rope_type": "default", "mrope_section": [1, 2]}), "mrope_section"),
        (config_of({**LONGROPE, "short_mscale": 1.1}, 8 * WINDOW), "short_mscale"),
        (config_of({"rope_type": "linear"}), "factor"),
        (config_of({"rope_type": "linear", "factor": 0.5}), "factor"),
        (config_of({"rope_type": "linear", "factor": "big"}), "factor"),
        (config_of({**LLAMA3, ORIGINAL: None}), ORIGINAL),
        (config_of({**LONGROPE, "long_factor": None}, 8 * WINDOW), "long_factor"),
        (config_of({**LONGROPE, "factor": 3.0}, 8 * WINDOW), "factor"),
        (config_of({**LONGROPE, "factor": "3"}, 8 * WINDOW), "factor"),
        (config_of(LONGROPE, WINDOW // 2), ORIGINAL),
        (config_of(LONGROPE, 8 * WINDOW, **{ORIGINAL: 128}), ORIGINAL),
        (
            config_of({"rope_type": "default", "partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
        (config_of(None, partial_rotary_factor=0.75), "partial_rotary_factor"),
        (config_of({"rope_type": "default"}, rope_theta=3.0), "rope_theta"),
        (old_config_of(None) | {"rope_theta": [1e4]}, "rope_theta"),
        (config_of({"full_attention": {"rope_type": "default"}}), "rope_parameters"),
        (
            config_of({"rope_type": "default"}, rope_scaling={"type": "linear", "factor": 2.0}),
            "rope_scaling",
        ),
        (config_of({"rope_type": "default"}, rope_scaling="linear"), "rope_scaling"),
        (config_of(None, rope_interleaved=True), "rope_interleaved"),
        (config_of(None, rope_local_base_freq=10_000.0), "rope_local_base_freq"),
        (config_of(None, rope_theta=BASE, head_dim=15), "head_dim"),
        (config_of(None, rope_theta=BASE, num_attention_heads=None), "num_attention_heads"),
        (config_of(None, rope_theta=BASE, max_position_embeddings=None), "max_position_embeddings"),
        (config_of({"rope_type": "dynamic", "factor": 2.0}), "rope_type"),
        (config_of({**LONGROPE, "short_factor": [1.0]}, 8 * WINDOW), "short_factor"),
        (config_of({**LONGROPE, "long_factor": [0.0, *LONG[1:]]}, 8 * WINDOW), "rescale"),
    ],
)
def test_what_we_cannot_carry_is_refused_by_name(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        factor_set_from_hf(config)
    assert caught.value.field.startswith(field)
    assert "\n" not in str(caught.value)


def make(rescale: list[float], target: int = 8 * WINDOW, **more: Any) -> RopeFactors:
    return RopeFactors(
        rescale=tuple(rescale),
        original_length=WINDOW,
        target_length=target,
        base=BASE,
        head_dim=HEAD_DIM,
        origin=FactorOrigin(method="search"),
        **more,
    )


def pair_of(short: RopeFactors, long: RopeFactors, up_to: int = WINDOW) -> FactorSet:
    return FactorSet(
        ranges=(FactorRange(up_to=up_to, factors=short), FactorRange(up_to=None, factors=long))
    )


BOTH = pair_of(make(SHORT, WINDOW, attention_factor=1.15), make(LONG, attention_factor=1.15))


@pytest.mark.parametrize(
    "factors",
    [
        BOTH,
        make(LONG, attention_factor=1.07),
        make([1.0] * 8, WINDOW),
        make([*LONG[:6], 1234.5, 1e6]),  # a pair at a standstill
    ],
)
@pytest.mark.parametrize(
    "dropped", [(), ("rope_scaling",), ("rope_parameters",)], ids=["both", "5", "4"]
)
def test_transformers_turns_as_exported(
    factors: FactorSet | RopeFactors, dropped: tuple[str, ...], tmp_path: Path
) -> None:
    """Each generation's keys alone, and both together, give cos and sin bit for bit, also after
    saving again."""
    pieces = {key: value for key, value in hf_rope_config(factors).items() if key not in dropped}
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, **pieces}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    factor_set = FactorSet.single(factors) if isinstance(factors, RopeFactors) else factors
    for each in (loaded, AutoConfig.from_pretrained(tmp_path / "again")):
        assert each.max_position_embeddings == factor_set.target_length
        for length in (WINDOW, WINDOW + 1, 8 * WINDOW):
            cos, sin = LlamaRotaryEmbedding(each)(torch.zeros(1), torch.arange(length)[None])
            ours = factor_set.for_length(length)
            angles = rotary_angles(torch.arange(length)[None], ours, "hf")
            assert torch.equal(angles.cos() * ours.attention_factor, cos[..., :8])
            assert torch.equal(angles.sin() * ours.attention_factor, sin[..., :8])


def test_what_longrope_is_told() -> None:
    pieces = hf_rope_config(BOTH)
    assert (pieces["max_position_embeddings"], pieces[ORIGINAL], pieces["rope_theta"]) == (
        8 * WINDOW,
        WINDOW,
        BASE,
    )
    assert pieces["rope_scaling"] == {**LONGROPE, "attention_factor": 1.15, "factor": 8.0}
    assert pieces["rope_parameters"] == {**pieces["rope_scaling"], "rope_theta": BASE}


factor_lists = st.lists(st.floats(0.1, 1000), min_size=8, max_size=8)


@given(
    short=factor_lists,
    long=factor_lists,
    target=st.integers(WINDOW + 1, 2**21),
    t=st.floats(0.5, 2),
)
@settings(max_examples=50, deadline=None)
def test_written_and_read_again_is_the_same(
    short: list[float], long: list[float], target: int, t: float
) -> None:
    original = pair_of(
        make(short, WINDOW, attention_factor=t), make(long, target, attention_factor=t)
    )
    config = config_of(None) | json.loads(json.dumps(hf_rope_config(original)))
    again = factor_set_from_hf(config)
    assert again.target_length == target
    for length in (1, WINDOW, WINDOW + 1, target):
        assert again.for_length(length).rescale == original.for_length(length).rescale
        assert again.for_length(length).attention_factor == t


@pytest.mark.parametrize(
    ("factors", "field"),
    [
        (make(LONG, start_tokens=4), "start_tokens"),
        (pair_of(make(SHORT, start_tokens=1), make(LONG)), "start_tokens"),
        (pair_of(make(SHORT, attention_factor=1.1), make(LONG)), "attention_factor"),
        (pair_of(make(SHORT), make(LONG), up_to=2 * WINDOW), "up_to"),
        (
            FactorSet(
                ranges=(
                    FactorRange(up_to=WINDOW, factors=make(SHORT)),
                    FactorRange(up_to=2 * WINDOW, factors=make(SHORT)),
                    FactorRange(up_to=None, factors=make(LONG)),
                )
            ),
            "ranges",
        ),
    ],
)
def test_export_refuses_what_hf_has_no_place_for(
    factors: FactorSet | RopeFactors, field: str
) -> None:
    with pytest.raises(InputError) as caught:
        hf_rope_config(factors)
    assert caught.value.field == field
