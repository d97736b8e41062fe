"""CoPE against the authors' formula in their own order, and its places: command line and search."""

from __future__ import annotations

import json
import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import baseline_methods
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import first_search, second_search
from megatron_longrope.rope import RopeGeometry, Yarn, inverse_frequencies, method_from_text
from megatron_longrope.rope.methods.cope import Cope

LLAMA3 = RopeGeometry(base=500_000.0, head_dim=128, original_length=8192)


def authors_frequencies(geometry: RopeGeometry, clip: int) -> torch.Tensor:
    """θ with the raised-cosine mask over the last `clip` pairs, in float64."""
    frequencies = inverse_frequencies(geometry.base, geometry.head_dim)
    mask = 0.5 * (1 + torch.cos(torch.linspace(0, math.pi, clip, dtype=torch.float64)))
    frequencies[len(frequencies) - clip :] *= mask
    return frequencies


@pytest.mark.parametrize("clip", [0, 1, 2, 20, 64])
def test_frequencies_are_the_authors_but_for_the_last_pair(clip: int) -> None:
    rescale = torch.tensor(Cope(num_clipped=clip).factors(LLAMA3).rescale, dtype=torch.float64)
    ours = inverse_frequencies(LLAMA3.base, LLAMA3.head_dim) / rescale
    theirs = authors_frequencies(LLAMA3, clip)
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-12, atol=0)
    # Frequency 0 is out of reach: a millionth of the pair's own is all that is left.
    assert 0 <= ours[-1] - theirs[-1] <= 1.0000001e-6 * inverse_frequencies(500_000.0, 128)[-1]


def test_clipping_begins_where_the_period_exceeds_the_window() -> None:
    factors = Cope().factors(LLAMA3)
    periods = (2 * math.pi / inverse_frequencies(LLAMA3.base, LLAMA3.head_dim)).tolist()
    first = next(i for i, period in enumerate(periods) if period > LLAMA3.original_length)
    assert (first, factors.rescale[first]) == (35, 1.0)  # the taper itself begins at 1
    assert set(factors.rescale[:first]) == {1.0} and factors.rescale[first + 1] > 1
    assert factors.rescale[-1] == pytest.approx(1e6)
    assert factors.attention_factor == 1.0
    assert Cope(onset=2).factors(LLAMA3).rescale[first + 1] == 1.0


@given(
    base=st.floats(1e3, 1e8),
    half=st.integers(2, 128),
    window=st.integers(64, 131_072),
    onset=st.floats(0.01, 100),
)
@settings(max_examples=25, deadline=None)
def test_taper_is_monotone_and_finite_for_any_geometry(
    base: float, half: int, window: int, onset: float
) -> None:
    geometry = RopeGeometry(base=base, head_dim=2 * half, original_length=window)
    factors = Cope(onset=onset, ceiling=1000).factors(geometry)
    assert factors.is_monotone
    assert factors.rescale[0] == 1.0 and max(factors.rescale) <= 1000 * (1 + 1e-12)


def test_the_command_line_takes_its_settings_and_no_scale() -> None:
    factor_set = method_from_text("cope,onset=0.5,ceiling=100", LLAMA3, 65536)
    assert factor_set.for_length(65536) == Cope(onset=0.5, ceiling=100).factors(LLAMA3, 65536)
    with pytest.raises(InputError, match="cope takes no scale"):
        method_from_text("cope:8", LLAMA3, 65536)


def test_a_first_search_starts_from_it_where_the_space_is_open() -> None:
    problem = first_search(SearchConfig(starts=("cope",), space="open"), LLAMA3, 65536)
    taper = Cope().factors(LLAMA3).rescale
    assert problem.seeds[0].rescale == taper
    start = problem.space.project(problem.seeds[0])  # as every searcher does
    assert start.rescale[34:36] == (1.0, 1.0) and start.rescale[-1] == taper[-1] == 1e6
    left = 1 / np.array(start.rescale) - 1 / np.array(taper)
    assert np.max(np.abs(left)) < 0.005  # half a step of 0.01 at λ = 1, less beyond


def test_a_second_search_starts_from_it_on_top_of_fine_tuned_factors() -> None:
    tuned = Yarn(scale=4).factors(LLAMA3)
    problem = second_search(SearchConfig(starts=("cope",), space="open"), LLAMA3, 131072, tuned)
    product = [a * b for a, b in zip(tuned.rescale, Cope().factors(LLAMA3).rescale, strict=True)]
    assert problem.seeds[0].rescale == pytest.approx(product)
    assert problem.seeds[0].attention_factor == tuned.attention_factor
    assert problem.space.project(problem.seeds[0]).rescale[-1] == max(product)
    found = build_config(EvaluationConfig, {"lengths": [64], "second_interpolations": ["cope"]})
    assert found.second_interpolations == ("cope",)


@pytest.mark.parametrize("space", ["longrope", "longrope2"])
def test_a_space_with_an_upper_end_refuses_it(space: Literal["longrope", "longrope2"]) -> None:
    config = SearchConfig(starts=("yarn", "cope"), space=space)
    with pytest.raises(InputError, match=r"search\.starts=cope: .*space=open"):
        first_search(config, LLAMA3, 65536)
    if space == "longrope":
        with pytest.raises(InputError, match=r"search\.starts=cope: .*space=open"):
            second_search(config, LLAMA3, 131072, Yarn(scale=4).factors(LLAMA3))


def test_nothing_else_changes_with_it() -> None:
    assert [m.name for m in baseline_methods(LLAMA3, 16384)] == [
        *("none", "pi", "ntk", "dynamic-ntk:2", "yarn"),
    ]
    assert json.loads(SearchConfig().model_dump_json())["starts"] == ["pi", "ntk", "yarn"]
