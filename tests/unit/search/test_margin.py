"""Margins and their intervals: coverage on invented documents, and what has no interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.interval_coverage import EFFECTS, SIZES, covered_by_interval, covered_in_parts
from megatron_longrope.artifacts.evaluations import ScoredPart
from megatron_longrope.errors import InputError
from megatron_longrope.search import Evaluation, Margin, paired_margin
from megatron_longrope.search.margin import student_quantile


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("size", SIZES)
def test_the_interval_covers_the_true_margin_as_often_as_it_says(effect: str, size: int) -> None:
    """93 to 97 %, whatever the tokens are spread like; in parts that share texts too."""
    draw, trials = EFFECTS[effect], 10_000
    for equal in (True, False):
        assert 0.93 <= covered_by_interval(draw, size, trials, equal=equal, seed=size) <= 0.97
    assert 0.93 <= covered_in_parts(draw, size, 4000, seed=10 + size) <= 0.97


def test_documents_of_equal_length_have_students_interval() -> None:
    """The textbook's: mean ± t · s/√n with n − 1 degrees of freedom."""
    values = np.array([0.02, 0.05, 0.03, 0.01])
    margin = paired_margin(
        Evaluation((0.0,) * 4, (50,) * 4), Evaluation(tuple(50 * values), (50,) * 4)
    )
    reach = 3.182446305 * values.std(ddof=1) / 2
    assert np.log([margin.low, margin.ratio, margin.high]) == pytest.approx(
        values.mean() + np.array([-reach, 0, reach]), rel=1e-8
    )


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (7, 2.36462), (120, 1.97993)]
)
def test_students_quantile_is_the_tables(freedom: float, table: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(table, rel=3e-6)


def test_answers_do_not_blow_up_the_interval_of_a_text() -> None:
    """Resampled together, five needle tokens and none of the text made powers of ten."""
    text = ScoredPart("text", ("a", "b", "c"), 2 / 3)
    needles = ScoredPart("answers", ((1, 0), (1, 1), (1, 2)), 1 / 3, is_text=False)
    counts = (8191,) * 3 + (5,) * 3
    total = sum(counts)

    def sums(of_text: list[float], of_needles: list[float]) -> tuple[float, ...]:
        return tuple(total / 3 * np.array([*np.array(of_text) * 2 / 3, *np.array(of_needles) / 3]))

    ours = Evaluation(sums([3.0, 2.5, 2.7], [0.1, 0.2, 0.1]), counts)
    other = Evaluation(sums([3.03, 2.54, 2.72], [0.3, 0.9, 0.2]), counts)
    margin = paired_margin(ours, other, (text, needles))
    assert margin.ratio == pytest.approx(math.exp(2 / 3 * 0.03 + 1 / 3 * 1.0 / 3))
    by_text = 4 / 9 * np.var([0.03, 0.04, 0.02], ddof=1) / 3
    by_needle = 1 / 9 * np.var([0.2, 0.7, 0.1], ddof=1) / 3
    freedom = (by_text + by_needle) ** 2 / ((by_text**2 + by_needle**2) / 2)  # Welch's
    reach = float(student_quantile(0.975, freedom)) * math.sqrt(by_text + by_needle)
    assert margin.high / margin.ratio == pytest.approx(math.exp(reach))
    assert margin.ratio / margin.low == pytest.approx(math.exp(reach))


def test_stretches_of_one_text_are_no_further_evidence() -> None:
    whole = Evaluation((30.0, 31.0, 29.0), (10,) * 3), Evaluation((31.0, 31.5, 31.0), (10,) * 3)
    cut = (
        Evaluation((15.0, 15.0, 15.5, 15.5, 14.5, 14.5), (5,) * 6),
        Evaluation((15.5, 15.5, 15.75, 15.75, 15.5, 15.5), (5,) * 6),
    )
    margin = paired_margin(*cut, (ScoredPart("text", ("a", "a", "b", "b", "c", "c")),))
    assert margin == paired_margin(*whole)
    assert paired_margin(*cut).high < margin.high  # as if it were


def test_a_part_of_a_single_document_has_no_interval() -> None:
    parts = (ScoredPart("text", ("a", "b"), 0.5), ScoredPart("answers", ((1, 0),), 0.5))
    ours, other = Evaluation((1.0, 1.0, 1.0), (2, 2, 2)), Evaluation((2.0, 2.5, 2.0), (2, 2, 2))
    margin = paired_margin(ours, other, parts)
    assert margin.ratio > 1 and math.isnan(margin.low) and math.isnan(margin.high)
    assert paired_margin(ours, ours) == Margin(1.0, 1.0, 1.0)
    worst = paired_margin(ours, Evaluation((math.inf, 1.0, 1.0), (2, 2, 2)))
    assert worst.ratio == math.inf and math.isnan(worst.low)


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
