"""Rotary angles against mpmath at 50 digits: 1e-6 rad at position 2 097 151)."""

from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope.errors import InputError
from megatron_longrope.rope import (
    FactorOrigin,
    NoScaling,
    RopeFactors,
    RopeGeometry,
    Yarn,
    inverse_frequencies,
    published_factors,
    rotary_angles,
)
from megatron_longrope.rope.methods.cope import Cope

LAST_POSITION = 2_097_151


def exact_angles(position: int, factors: RopeFactors) -> list[mpmath.mpf]:
    """n·base^(-2i/d)/λ_i with 50 digits, λ = 1 below the start tokens."""
    with mpmath.workdps(50):
        scaled = position >= factors.start_tokens
        return [
            position
            * mpmath.power(mpmath.mpf(factors.base), -mpmath.mpf(2 * i) / factors.head_dim)
            / (mpmath.mpf(rescale) if scaled else 1)
            for i, rescale in enumerate(factors.rescale)
        ]


def circle_error(angles: torch.Tensor, exact: list[mpmath.mpf]) -> float:
    """Largest distance on the circle, in radians."""
    with mpmath.workdps(50):
        turns = [
            (mpmath.mpf(a) - e) / (2 * mpmath.pi)
            for a, e in zip(angles.tolist(), exact, strict=True)
        ]
        return float(max(abs(turn - mpmath.nint(turn)) for turn in turns) * 2 * mpmath.pi)


FACTORS = [
    published_factors("llama2-7b/2048k-after-256k"),
    published_factors("mistral-7b-v0.1/2048k-after-128k"),
    NoScaling().factors(RopeGeometry(base=1e4, head_dim=64, original_length=512)),
    NoScaling().factors(RopeGeometry(base=1e6, head_dim=128, original_length=32768)),
    Yarn(scale=64).factors(RopeGeometry(base=5e5, head_dim=128, original_length=8192)),
    Cope().factors(RopeGeometry(base=1e4, head_dim=64, original_length=256)),
]


@pytest.mark.parametrize(
    "factors", FACTORS, ids=lambda f: f"{f.origin.method}-{f.base:g}-{f.head_dim}"
)
@pytest.mark.parametrize("position", [0, 1, 4095, 262_143, 2_097_150, LAST_POSITION])
def test_float64_angles_are_within_a_millionth_of_a_radian(
    factors: RopeFactors, position: int
) -> None:
    angles = rotary_angles(torch.tensor([position]), factors)[0]
    assert angles.dtype == torch.float32
    assert angles.abs().max() <= 3.1415928
    assert circle_error(angles, exact_angles(position, factors)) <= 1.3e-7


def test_float32_throughout_is_a_tenth_of_a_radian_off() -> None:
    worst = 0.0
    for factors in FACTORS[2:4]:
        for position in range(LAST_POSITION - 10, LAST_POSITION + 1):
            angles = rotary_angles(torch.tensor([position]), factors, "hf")[0]
            worst = max(worst, circle_error(angles, exact_angles(position, factors)))
    assert 0.05 < worst < 0.2


@given(position=st.integers(0, LAST_POSITION), start_tokens=st.sampled_from([0, 1, 2, 64, 256]))
@settings(max_examples=25, deadline=None)
def test_start_tokens_keep_the_original_angle(position: int, start_tokens: int) -> None:
    factors = published_factors("llama2-7b/256k-after-128k").model_copy(
        update={"start_tokens": start_tokens}
    )
    angles = rotary_angles(torch.tensor([position]), factors)[0]
    assert circle_error(angles, exact_angles(position, factors)) <= 1.3e-7


@pytest.mark.parametrize("precision", ["float64", "hf"])
def test_start_tokens_switch_exactly_at_their_number(precision: str) -> None:
    factors = Yarn(scale=8).factors(RopeGeometry(base=1e4, head_dim=16, original_length=256))
    plain = NoScaling().factors(factors.geometry)
    positions = torch.arange(20)
    mixed = rotary_angles(positions, factors.model_copy(update={"start_tokens": 8}), precision)  # type: ignore[arg-type]
    assert torch.equal(mixed[:8], rotary_angles(positions[:8], plain, precision))  # type: ignore[arg-type]
    assert torch.equal(mixed[8:], rotary_angles(positions[8:], factors, precision))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_any_slice_of_positions_gives_the_same_rows(dtype: torch.dtype) -> None:
    """Context-parallel ranks build their own slice: it must equal the rows of the whole."""
    factors = FACTORS[4]
    whole = rotary_angles(torch.arange(64), factors)
    zigzag = torch.tensor([[8, 9, 40, 41], [0, 1, 62, 63]], dtype=dtype)
    assert torch.equal(rotary_angles(zigzag, factors), whole[zigzag.long()])


def test_inverse_frequencies_are_float64_of_the_formula() -> None:
    frequencies = inverse_frequencies(1e4, 64)
    assert frequencies.dtype == torch.float64
    with mpmath.workdps(50):
        exact = [float(mpmath.power(10_000, -mpmath.mpf(2 * i) / 64)) for i in range(32)]
    torch.testing.assert_close(
        frequencies, torch.tensor(exact, dtype=torch.float64), rtol=5e-16, atol=0
    )


def test_wrong_positions_and_precision_are_refused() -> None:
    with pytest.raises(InputError, match="positions"):
        rotary_angles(torch.tensor([0.5]), FACTORS[2])
    with pytest.raises(InputError, match="angle_precision"):
        rotary_angles(torch.tensor([1]), FACTORS[2], "float32")  # type: ignore[arg-type]


@given(
    rescale=st.lists(st.floats(0.5, 500), min_size=8, max_size=8),
    positions=st.lists(st.integers(0, LAST_POSITION), min_size=1, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_arbitrary_factors_stay_exact(rescale: list[float], positions: list[int]) -> None:
    factors = RopeFactors(
        rescale=tuple(rescale),
        original_length=4096,
        target_length=2**21,
        base=1e4,
        head_dim=16,
        origin=FactorOrigin(method="search"),
    )
    angles = rotary_angles(torch.tensor(positions), factors)
    assert (
        max(
            circle_error(a, exact_angles(n, factors))
            for a, n in zip(angles, positions, strict=True)
        )
        <= 1.3e-7
    )
