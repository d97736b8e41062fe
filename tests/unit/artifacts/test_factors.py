"""Factors, factor sets and their JSON files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_longrope.errors import InputError
from megatron_longrope.rope import (
    FactorOrigin,
    FactorRange,
    FactorSet,
    RopeFactors,
    RopeGeometry,
    Yarn,
    published_factors,
    read_factors,
    write_factors,
)


def make(rescale: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0), **changes: Any) -> RopeFactors:
    values: dict[str, Any] = {
        "rescale": rescale,
        "original_length": 256,
        "target_length": 1024,
        "base": 1e4,
        "head_dim": 8,
        "origin": FactorOrigin(method="search", score=3.25),
    }
    return RopeFactors(**(values | changes))


factors_strategy = st.builds(
    make,
    rescale=st.tuples(*[st.floats(1e-3, 1e4)] * 4),
    start_tokens=st.integers(0, 256),
    attention_factor=st.floats(0.5, 10),
    target_length=st.integers(1, 2**21),
)


@st.composite
def sets(draw: st.DrawFn) -> FactorSet:
    limits = sorted(draw(st.sets(st.integers(1, 2**21), max_size=4)))
    entries = [FactorRange(up_to=limit, factors=draw(factors_strategy)) for limit in limits]
    if not entries or draw(st.booleans()):
        entries.append(FactorRange(up_to=None, factors=draw(factors_strategy)))
    return FactorSet(ranges=tuple(entries))


@given(factor_set=sets())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_files_give_back_every_bit(factor_set: FactorSet, tmp_path: Path) -> None:
    path = tmp_path / "new" / "factors.json"
    write_factors(path, factor_set)
    assert read_factors(path) == factor_set
    assert [entry.name for entry in path.parent.iterdir()] == ["factors.json"]


def test_an_origin_says_no_more_than_files_of_before_unless_there_is_more() -> None:
    keys = ["method", "model", "data", "score", "source"]
    assert list(FactorOrigin(method="yarn").model_dump(mode="json")) == keys
    found = FactorOrigin(method="longrope", searcher="hybrid", scored="text, answers")
    assert FactorOrigin.model_validate(found.model_dump(mode="json")) == found


def test_hf_frequencies_travel_with_the_file(tmp_path: Path) -> None:
    factors = Yarn(scale=4).factors(RopeGeometry(base=1e4, head_dim=64, original_length=512))
    write_factors(tmp_path / "f.json", factors)
    assert read_factors(tmp_path / "f.json") == FactorSet.single(factors)


@given(factor_set=sets(), length=st.integers(1, 2**22))
@settings(max_examples=60, deadline=None)
def test_the_smallest_range_that_holds_the_length_serves_it(
    factor_set: FactorSet, length: int
) -> None:
    holding = [e.factors for e in factor_set.ranges if e.up_to is not None and length <= e.up_to]
    assert factor_set.for_length(length) == (
        holding[0] if holding else factor_set.ranges[-1].factors
    )


def test_properties() -> None:
    factors = make()
    assert factors.scale == 4
    assert factors.is_monotone
    assert not make((1.0, 3.0, 2.0, 4.0)).is_monotone
    assert make((1.0,) * 4).is_identity
    assert not make((1.0,) * 4, attention_factor=1.1).is_identity
    assert make(target_length="2M").target_length == 2**21


def test_copies_are_validated_and_forget_old_float32_frequencies() -> None:
    factors = Yarn(scale=4).factors(RopeGeometry(base=1e4, head_dim=8, original_length=256))
    assert factors.model_copy(update={"attention_factor": 1.0}).hf_inverse_frequencies is not None
    assert (
        factors.model_copy(update={"rescale": (1.0, 2.0, 3.0, 4.0)}).hf_inverse_frequencies is None
    )
    with pytest.raises(ValidationError):
        factors.model_copy(update={"rescale": (1.0,)})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rescale": [1.0, 2.0, 3.0]}, "needs 4 rescale factors"),
        ({"rescale": [1.0, 2.0, 3.0, 0.0]}, "greater than 0"),
        ({"rescale": [1.0, 2.0, 3.0, -1.0]}, "greater than 0"),
        ({"rescale": [1.0, 2.0, 3.0, "4"]}, "valid number"),
        ({"rescale": [1.0, 2.0, 3.0, True]}, "valid number"),
        ({"attention_factor": 0.0}, "greater than 0"),
        ({"attention_factor": 10.5}, "less than or equal to 10"),
        ({"start_tokens": -1}, "greater than or equal to 0"),
        ({"head_dim": 7}, "multiple of 2"),
        ({"target_length": 0}, "positive"),
        ({"target_lenght": 3}, "unknown key"),
        ({"hf_inverse_frequencies": [1.0, 0.1, 0.01, 0.001]}, "not what λ gives"),
        ({"hf_inverse_frequencies": [1.0]}, "as many"),
    ],
)
def test_wrong_values_in_a_file_are_refused(
    change: dict[str, Any], word: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.json"
    write_factors(path, make())
    values = json.loads(path.read_text())
    values["ranges"][0]["factors"] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=word) as caught:
        read_factors(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_factors(path, make())
    values = json.loads(path.read_text())
    values["ranges"][0]["factors"]["rescale"][1] = number
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="finite"):
        read_factors(path)
    path.write_text(
        path.read_text()
        .replace("NaN", "1e999")
        .replace("-Infinity", "1e999")
        .replace("Infinity", "1e999")
    )
    with pytest.raises(InputError, match="finite"):
        read_factors(path)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not a whole JSON file"),
        ("[" * 100_000, "not a whole JSON file"),
        ("[1, 2]", "not a factors file"),
        ("{}", "not a factors file"),
        ('{"format": "longrope-factors"}', "version"),
        ('{"format": "longrope-factors", "version": 2, "ranges": []}', "version"),
        ('{"format": "longrope-factors", "version": true, "ranges": []}', "version"),
        ('{"format": "longrope-factors", "version": 1, "ranges": []}', "ranges"),
        ('{"format": "longrope-factors", "version": 1}', "ranges"),
    ],
)
def test_other_files_are_refused(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        read_factors(path)


def test_truncated_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_factors(path, published_factors("llama2-7b/fine-tune-256k"))
    whole = path.read_text()
    for kept in (1, len(whole) // 2, len(whole) - 3):
        path.write_text(whole[:kept])
        with pytest.raises(InputError, match="not a whole JSON file"):
            read_factors(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a whole JSON file"):
        read_factors(path)
    with pytest.raises(InputError, match="no such file"):
        read_factors(tmp_path / "none.json")
    with pytest.raises(InputError, match="a folder, not a factors file"):
        read_factors(tmp_path)


def test_sets_that_make_no_sense_are_refused() -> None:
    factors = make()
    for limits in ([512, 256], [256, 256], [None, 512]):
        with pytest.raises(ValidationError, match="ascend"):
            FactorSet(ranges=tuple(FactorRange(up_to=limit, factors=factors) for limit in limits))
    other = make(original_length=512)
    with pytest.raises(ValidationError, match="same base"):
        FactorSet(
            ranges=(FactorRange(up_to=256, factors=factors), FactorRange(up_to=None, factors=other))
        )


def test_non_monotone_published_sets_are_read(tmp_path: Path) -> None:
    factors = published_factors("mistral-7b-v0.1/2048k-after-256k")
    write_factors(tmp_path / "f.json", factors)
    assert not read_factors(tmp_path / "f.json").for_length(2**21).is_monotone
