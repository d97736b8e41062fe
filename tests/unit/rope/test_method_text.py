"""`--method NAME[:SCALE][,key=value…]`: the words others script against."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.rope import (
    DynamicNtk,
    FactorSet,
    Llama3,
    NoScaling,
    NtkAware,
    PositionInterpolation,
    RopeGeometry,
    RopeMethod,
    Yarn,
    method_from_text,
    published_factors,
    write_factors,
)

GEOMETRY = RopeGeometry(base=1e4, head_dim=64, original_length=512)


@pytest.mark.parametrize(
    ("text", "length", "target", "method"),
    [
        ("none", 4096, 4096, NoScaling()),
        ("pi", 4096, None, PositionInterpolation(scale=8)),
        ("pi", 4096, 1024, PositionInterpolation(scale=2)),
        ("pi", 128, None, PositionInterpolation(scale=1)),
        ("pi:2.5", 4096, 1024, PositionInterpolation(scale=2.5)),
        ("ntk", 768, None, NtkAware(scale=1.5)),
        ("ntk:4", 768, None, NtkAware(scale=4)),
        ("yarn", 256, 2048, Yarn(scale=4)),
        ("yarn:2", 16384, None, Yarn(scale=2)),
        ("dynamic-ntk:2", 4096, None, DynamicNtk(factor=2)),
        ("dynamic-ntk:2", 512, None, DynamicNtk(factor=2)),
    ],
)
def test_words(text: str, length: int, target: int | None, method: RopeMethod) -> None:
    factors = method_from_text(text, GEOMETRY, length, target).for_length(length)
    assert factors == method.factors(GEOMETRY, length)


def test_dynamic_ntk_leaves_the_window_alone() -> None:
    factor_set = method_from_text("dynamic-ntk:2", GEOMETRY, 4096)
    assert factor_set.for_length(512).is_identity
    assert not factor_set.for_length(513).is_identity


def test_a_factors_file(tmp_path: Path) -> None:
    factors = Yarn(scale=8).factors(GEOMETRY)
    for name in ("best.json", "without-ending"):
        write_factors(tmp_path / name, factors)
        assert method_from_text(str(tmp_path / name), GEOMETRY, 4096).for_length(4096) == factors
    for other in (
        GEOMETRY.model_copy(update={"base": 5e5}),
        GEOMETRY.model_copy(update={"head_dim": 32}),
    ):
        with pytest.raises(InputError, match="this model has"):
            method_from_text(str(tmp_path / "best.json"), other, 4096)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("dynamic-ntk", "plain ntk"),
        ("none:2", "no scale"),
        ("yarn:", "a number"),
        ("yarn:two", "a number"),
        ("pi:0.5", "at least 1"),
        ("ntk:nan", "finite"),
        ("ntk:inf", "finite"),
        ("yran:2", "one of none, pi, ntk, dynamic-ntk, yarn"),
        ("", "one of none"),
        ("missing.json", "no such file"),
    ],
)
def test_wrong_words(text: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        method_from_text(text, GEOMETRY, 4096)


@pytest.mark.parametrize(
    ("text", "method"),
    [
        (
            "yarn:8,beta_fast=4,beta_slow=0.7,truncate=false",
            Yarn(scale=8, beta_fast=4, beta_slow=0.7, truncate=False),
        ),
        ("yarn,attention_factor=1.25", Yarn(scale=8, attention_factor=1.25)),
        ("llama3:16,high_freq_factor=7", Llama3(factor=16, high_freq_factor=7)),
        ("llama3", Llama3(factor=8)),
    ],
)
def test_settings_follow_the_scale(text: str, method: RopeMethod) -> None:
    assert method_from_text(text, GEOMETRY, 4096) == method.factor_set(GEOMETRY)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("yarn:8,beta_fast=quick", "beta_fast=quick: "),
        ("yarn:8,beta_fast=0.5", "beta_fast is larger than beta_slow"),
        ("yarn:8,beta=4", "beta=4: unknown key in --method yarn:8,beta=4; known here: "),
        ("yarn:8,scale=4", "scale goes after a colon, as in yarn:2"),
        ("yarn:8,beta_fast", "a setting is written key=value, got 'beta_fast'"),
        ("yarn:8,", "a setting is written key=value, got ''"),
        ("yarn:8,beta_fast=4,beta_fast=5", "beta_fast is given twice"),
        ("none,scale=4", "scale=4: unknown key"),
        ("dynamic-ntk,factor=2", "plain ntk"),
        ("longrope:8", "one of none, pi"),
    ],
)
def test_wrong_settings_are_one_line(text: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        method_from_text(text, GEOMETRY, 4096)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_published_set_by_name() -> None:
    llama2 = RopeGeometry(base=1e4, head_dim=128, original_length=4096)
    name = "llama2-7b/2048k-after-256k"
    assert method_from_text(name, llama2, 8192) == FactorSet.single(published_factors(name))
    with pytest.raises(InputError, match="made for base 10000 and head_dim 128"):
        method_from_text(name, GEOMETRY, 8192)
