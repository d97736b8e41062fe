"""The published sets: the facts known of them from their papers and files."""

from __future__ import annotations

import math

import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.rope import published_factors, published_names, published_sets


def test_there_are_thirty_searched_sets_and_longrope2s() -> None:
    names = published_names()
    assert len(names) == len(set(names)) == 31
    assert sum(name.startswith("llama2-7b/") for name in names) == 17
    assert sum(name.startswith("mistral-7b-v0.1/") for name in names) == 13
    assert names[-1] == "llama3-8b/longrope2-128k"


@pytest.mark.parametrize("name", published_names())
def test_every_set_is_whole(name: str) -> None:
    factors = published_factors(name)
    assert factors.head_dim == 128
    assert (factors.base, factors.original_length) == {
        "llama2-7b": (1e4, 4096),
        "mistral-7b-v0.1": (1e4, 8192),
        "llama3-8b": (5e5, 8192),
    }[name.partition("/")[0]]
    assert factors.origin.source is not None and "github.com/microsoft" in factors.origin.source


def test_llama2_is_monotone_and_long_mistral_is_not() -> None:
    kinds = {entry.name: published_factors(entry.name).is_monotone for entry in published_sets()}
    assert all(monotone for name, monotone in kinds.items() if name.startswith("llama"))
    others = {
        entry.name
        for entry in published_sets()
        if entry.model == "mistral-7b-v0.1" and not kinds[entry.name]
    }
    assert others == {
        e.name for e in published_sets() if e.model == "mistral-7b-v0.1" and e.target_length > 8192
    }


def test_sets_beyond_fine_tuning_are_at_least_the_fine_tuning_set() -> None:
    for entry in published_sets():
        if entry.target_length > entry.fine_tuned_length:
            start = published_factors(f"{entry.model}/fine-tune-{entry.fine_tuned_length // 1024}k")
            pairs = zip(entry.rescale, start.rescale, strict=True)
            assert all(longer >= shorter for longer, shorter in pairs), entry.name


def test_longrope2_follows_its_power_law_below_pair_33() -> None:
    rescale = published_factors("llama3-8b/longrope2-128k").rescale
    assert [round(rescale[33] ** (i / 33), 4) for i in range(34)] == pytest.approx(
        rescale[:34], abs=1e-4
    )


def test_temperature_is_microsofts_formula_for_the_longest_length() -> None:
    assert published_factors("llama2-7b/256k-after-128k").attention_factor == pytest.approx(
        math.sqrt(1.5)
    )
    assert published_factors("llama2-7b/4k-after-256k").attention_factor == pytest.approx(
        math.sqrt(1.5)
    )
    assert published_factors("llama2-7b/2048k-after-256k").attention_factor == pytest.approx(
        math.sqrt(1.75)
    )


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="longrope factors list"):
        published_factors("llama2-7b/3k")
