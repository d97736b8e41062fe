"""Factors take effect at once, all of them: λ, n̂, temperature, and the choice by length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_longrope.data import DocumentBatch
from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel, document_logits, score_documents
from megatron_longrope.model.attention.packed import packed_params
from megatron_longrope.rope import FactorOrigin, FactorRange, FactorSet, RopeFactors, rotary_angles
from megatron_longrope.runtime import Runtime
from tests.support.llama_oracle import longrope_angles, oracle_logits
from tests.support.tiny_models import (
    WINDOW,
    our_model,
    random_documents,
    single_runtime,
    tiny_hf_model,
)

runtime = pytest.fixture(single_runtime, scope="module")
HF = pytest.fixture(lambda: tiny_hf_model(), scope="module", name="hf")


@pytest.fixture(scope="module")
def model(hf: object, runtime: Runtime) -> LongRopeModel:
    return our_model(hf, runtime, angle_precision="float64")


def factors(
    slope: float = 0.3, start_tokens: int = 0, attention_factor: float = 1.0, **other: float
) -> RopeFactors:
    values = {
        "original_length": WINDOW,
        "target_length": 4 * WINDOW,
        "base": 10000.0,
        "head_dim": 16,
    } | other
    rescale = tuple(1.0 + slope * i for i in range(int(values["head_dim"]) // 2))
    return RopeFactors(
        rescale=rescale,
        start_tokens=start_tokens,
        attention_factor=attention_factor,
        origin=FactorOrigin(method="test"),
        **values,
    )


def total_loss(model: LongRopeModel, documents: list[np.ndarray]) -> bytes:
    return b"".join(score.nll.tobytes() for score in score_documents(model, documents))


@pytest.mark.parametrize(
    "other",
    [
        factors(slope=0.31),
        factors(start_tokens=4),
        factors(attention_factor=1.01),
        factors(slope=0.0),
    ],
    ids=["rescale", "start_tokens", "attention_factor", "unscaled"],
)
def test_a_b_a_gives_a_again_bit_for_bit(other: RopeFactors, model: LongRopeModel) -> None:
    documents = random_documents(150, 40, 150)
    model.set_factors(factors())
    first = total_loss(model, documents)
    model.set_factors(other)
    assert total_loss(model, documents) != first
    model.set_factors(factors())
    assert total_loss(model, documents) == first


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    slope=st.floats(0, 2),
    start_tokens=st.integers(0, 60),
    attention_factor=st.floats(0.8, 1.4),
    length=st.integers(2, 90),
)
def test_logits_equal_a_float64_oracle(
    slope: float,
    start_tokens: int,
    attention_factor: float,
    length: int,
    hf: object,
    model: LongRopeModel,
) -> None:
    chosen = factors(slope, start_tokens, attention_factor)
    (document,) = random_documents(length)
    model.set_factors(chosen)
    angles = longrope_angles(
        length, base=10000.0, head_dim=16, rescale=chosen.rescale, start_tokens=start_tokens
    )
    expected = oracle_logits(
        hf.state_dict(), hf.config, torch.from_numpy(document), angles, attention_factor
    )  # type: ignore[attr-defined]
    np.testing.assert_allclose(document_logits(model, document), expected, atol=1e-4, rtol=0)


def test_start_tokens_leave_an_input_that_short_unscaled(model: LongRopeModel) -> None:
    documents = random_documents(32)
    model.set_factors(factors(slope=0.0))
    unscaled = total_loss(model, documents)
    model.set_factors(factors(slope=0.5, start_tokens=32))
    assert total_loss(model, documents) == unscaled
    model.set_factors(factors(slope=0.5, start_tokens=24))
    assert total_loss(model, documents) != unscaled


def test_the_set_follows_the_length_of_each_input(model: LongRopeModel) -> None:
    short, long = factors(slope=0.0), factors(slope=0.5, attention_factor=1.1)
    documents = random_documents(WINDOW, WINDOW + 1, 10, 3 * WINDOW)
    by_set = {}
    for name, chosen in (("short", short), ("long", long)):
        model.set_factors(chosen)
        by_set[name] = score_documents(model, documents)
    model.set_factors(
        FactorSet(
            ranges=(FactorRange(up_to=WINDOW, factors=short), FactorRange(up_to=None, factors=long))
        )
    )
    switched = score_documents(model, documents)
    for score, name, index in zip(
        switched, ("short", "long", "short", "long"), range(4), strict=True
    ):
        np.testing.assert_allclose(score.nll, by_set[name][index].nll, atol=1e-5)


@pytest.mark.parametrize("pad_to_multiple", [1, 2, 8])
def test_padding_does_not_change_which_factors_serve(pad_to_multiple: int) -> None:
    short, long = factors(slope=0.0), factors(slope=0.5, attention_factor=1.1)
    both = FactorSet(
        ranges=(FactorRange(up_to=33, factors=short), FactorRange(up_to=None, factors=long))
    )
    for length, expected in ((33, short), (34, long)):
        batch = DocumentBatch.from_documents(random_documents(length, 5), pad_to_multiple)
        packed = packed_params(batch, both, "float64", torch.device("cpu"))
        assert packed.softmax_scale == expected.attention_factor**2 / 4
        angles = rotary_angles(batch.positions, expected)
        assert packed.rotary_table is not None and torch.equal(packed.rotary_table, angles)


def test_factors_of_another_geometry_are_refused(model: LongRopeModel) -> None:
    with pytest.raises(InputError, match="head_dim=32"):
        model.set_factors(factors(head_dim=32))
    with pytest.raises(InputError, match=r"base=500000\.0"):
        model.set_factors(factors(base=500000.0))
