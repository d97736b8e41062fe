"""Margins and their intervals: coverage on invented documents, and what has no interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.search import Evaluation, paired_margin


def test_the_interval_covers_the_true_margin_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        ours = 3.0 + 0.5 * random.standard_normal(20)  # documents differ far more than methods do
        other = ours + 0.02 + 0.02 * random.standard_normal(20)
        counts = (500,) * 20
        margin = paired_margin(
            Evaluation(tuple(500 * ours), counts), Evaluation(tuple(500 * other), counts), trial
        )
        assert margin.low <= margin.ratio <= margin.high
        covered += margin.low <= math.exp(0.02) <= margin.high
    assert 175 <= covered <= 199


def test_documents_are_weighed_by_their_tokens() -> None:
    margin = paired_margin(Evaluation((10.0, 10.0), (10, 30)), Evaluation((14.0, 10.0), (10, 30)))
    assert margin.ratio == pytest.approx(math.exp(4 / 40))


def test_one_document_has_no_interval_and_other_documents_are_refused() -> None:
    margin = paired_margin(Evaluation((10.0,), (10,)), Evaluation((11.0,), (10,)))
    assert (
        margin.ratio == pytest.approx(math.exp(0.1))
        and math.isnan(margin.low)
        and math.isnan(margin.high)
    )
    with pytest.raises(InputError, match="same documents"):
        paired_margin(Evaluation((10.0,), (10,)), Evaluation((10.0,), (11,)))
