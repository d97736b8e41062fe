"""`--method NAME[:SCALE]`: the words others script against."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.rope import (
    DynamicNtk,
    NoScaling,
    NtkAware,
    PositionInterpolation,
    RopeGeometry,
    RopeMethod,
    Yarn,
    method_from_text,
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
