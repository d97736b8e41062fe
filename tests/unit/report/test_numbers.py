"""The numbers of the report: sums over documents divided once, tables, factors, convergence,
against plain numpy."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longrope.artifacts.metrics import MetricsRow
from megatron_longrope.artifacts.records import as_record
from megatron_longrope.artifacts.rows import PositionRow, RetrievalRow
from megatron_longrope.errors import InputError
from megatron_longrope.report import (
    grid_of_rows,
    write_report,
)
from megatron_longrope.report.aggregate import Series, best_so_far, position_curves, retrieval_grids
from megatron_longrope.report.headline import duration
from megatron_longrope.report.plots.curves import length_panels
from megatron_longrope.report.plots.factors import factors_by_target, wavelengths
from megatron_longrope.report.plots.loss import by_stage, running_mean
from megatron_longrope.report.plots.search import baselines
from megatron_longrope.report.run_files import read_run
from megatron_longrope.report.style import round_ticks, short_length
from megatron_longrope.report.tables import format_perplexity, perplexity_table
from tests.support import report_fake_run as fake


def expected(model: str, method: str, temperature: str, length: int) -> float:
    """exp(Σnll / Σtokens) straight from the rows."""
    key = (model, method, temperature, length)
    rows = [
        r
        for r in fake.perplexity_rows()
        if (r["model"], r["method"], r["attention_factor"], r["length"]) == key
    ]
    assert len(rows) == len(fake.DOCUMENTS)
    return float(np.exp(np.sum([r["nll_sum"] for r in rows]) / np.sum([r["tokens"] for r in rows])))


def test_table_is_sums_divided_once() -> None:
    table = perplexity_table(grid_of_rows(fake.perplexity_rows()))
    assert table.lengths == tuple(fake.LENGTHS)
    assert [name for name, _ in table.groups] == ["Base model", "Extended model", "Control"]
    for _, rows in table.groups:
        for row in rows:
            for length, cell in zip(table.lengths, row.cells, strict=True):
                series = row.series
                value = expected(series.model, series.method, series.attention_factor, length)
                assert cell.value == pytest.approx(value, rel=1e-12)
                assert cell.text == f"{value:.2f}"


def test_page_shows_the_same_numbers(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    fake.write_json(tmp_path / "evals" / "perplexity.json", {"rows": fake.perplexity_rows()})
    html = write_report(tmp_path).read_text(encoding="utf-8")
    body = html[html.index('id="table"') :]
    shown = re.findall(r'<td class="num(?: best)?">([^<]*)</td>', body[: body.index("</section>")])
    grid = grid_of_rows(fake.perplexity_rows())
    order = [series for group in grid.groups for series in grid.of_group(*group)]
    assert shown == [
        f"{expected(s.model, s.method, s.attention_factor, n):.2f}"
        for s in order
        for n in fake.LENGTHS
    ]


def test_several_files_are_one_table_and_repeats_count_once(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    rows = fake.perplexity_rows()
    fake.write_json(tmp_path / "evals" / "perplexity_a.json", {"rows": rows[: len(rows) // 2 + 5]})
    fake.write_json(tmp_path / "evals" / "perplexity_b.json", {"rows": rows[len(rows) // 2 :]})
    run = read_run(tmp_path)
    again = grid_of_rows(row.model_dump() for row in run.evaluations.perplexity)
    once = grid_of_rows(rows)
    assert all(
        again.value(s, n) == pytest.approx(once.value(s, n))
        for s in once.cells
        for n in fake.LENGTHS
    )


def test_a_document_with_two_results_is_refused() -> None:
    row = fake.perplexity_rows()[0]
    with pytest.raises(InputError, match="scored twice"):
        grid_of_rows([row, row | {"nll_sum": row["nll_sum"] * 1.01}])


def test_best_is_marked_per_model_and_length() -> None:
    row = {"length": 512, "document": "a", "tokens": 10}
    rows = [
        row | {"method": m, "nll_sum": s}
        for m, s in (("none", 40.0), ("pi", 30.0), ("yarn", 30.0 + 1e-7))
    ]
    rows.append(row | {"model": "control", "method": "none", "nll_sum": 20.0})
    groups = perplexity_table(grid_of_rows(rows)).groups
    marked = [[cell.is_best for line in lines for cell in line.cells] for _, lines in groups]
    assert marked == [[False, True, True], [False]]


def test_sliding_windows_are_not_mixed_with_scoring_from_the_first_token() -> None:
    row = {"method": "none", "length": 512, "document": "a", "tokens": 10}
    grid = grid_of_rows(
        [row | {"nll_sum": 40.0}, row | {"nll_sum": 30.0, "window": 256, "stride": 64}]
    )
    assert grid.value(Series("base", "none"), 512) == pytest.approx(math.exp(4))
    assert grid.value(Series("base", "none", "own", (256, 64)), 512) == pytest.approx(math.exp(3))
    assert [name for name, _ in perplexity_table(grid).groups] == [
        "Base model",
        "Base model · window 256, stride 64",
    ]


def test_a_models_own_window_is_in_the_plot_of_every_model() -> None:
    row = {"method": "none", "document": "a", "tokens": 10, "nll_sum": 40.0}
    rows = [row | {"length": length} for length in (256, 512)]
    rows += [each | {"model": "extended", "method": "longrope"} for each in rows]
    rows.append(row | {"length": 512, "nll_sum": 30.0, "window": 256, "stride": 64})
    panels = length_panels(grid_of_rows(rows), 256)
    assert [[entry.label for entry in panel.legend] for panel in panels] == [
        ["No change", "Base model, cut to its own window, sliding"],
        ["LongRoPE", "Base model, no change", "Base model, cut to its own window, sliding"],
    ]


def test_a_loss_that_was_not_finite_is_infinite_and_not_the_best() -> None:
    row = {"length": 512, "document": "a", "tokens": 10}
    rows = [row | {"method": "none", "nll_sum": None}, row | {"method": "pi", "nll_sum": 9000.0}]
    rows.append(row | {"method": "yarn", "nll_sum": 100.0})
    assert [line.cells[0].text for line in perplexity_table(grid_of_rows(rows)).groups[0][1]] == [
        "∞",
        "∞",
        "22,026",
    ]


def test_other_documents_are_pointed_out() -> None:
    row = {"length": 512, "tokens": 10, "nll_sum": 30.0}
    rows = [row | {"method": "none", "document": "a"}, row | {"method": "pi", "document": "b"}]
    assert grid_of_rows(rows).uneven_lengths() == [512]
    assert grid_of_rows(rows[:1]).uneven_lengths() == []


def test_positions_take_the_longest_context_only() -> None:
    row = {"model": "base", "method": "pi", "bucket_start": 0, "bucket_end": 64, "tokens": 10}
    rows = [
        PositionRow(**row, length=n, nll_sum=s) for n, s in ((512, 1.0), (1024, 20.0), (1024, 40.0))
    ]
    ((start, end, total),) = position_curves(rows)[Series("base", "pi")]
    assert (start, end, total.perplexity) == (0, 64, pytest.approx(math.exp(3)))


def test_retrieval_counts_are_added_per_task() -> None:
    row = {"model": "base", "method": "none", "length": 512, "depth": 0.5}
    plain = {"model": "base", "method": "none", "length": 512}
    grids = retrieval_grids(
        [
            RetrievalRow(**row, trials=10, correct=3),
            RetrievalRow(**row, trials=5, correct=5),
            RetrievalRow(**plain, task="list", trials=2, correct=1),
        ]
    )
    assert grids == {
        "list": {Series("base", "none"): {(512, None): (1, 2)}},
        "passkey": {Series("base", "none"): {(512, 0.5): (8, 15)}},
    }
    with pytest.raises(InputError, match="more exact matches than trials"):
        as_record({**row, "trials": 3, "correct": 4}, RetrievalRow, Path("rows"))


def test_factors_files_of_the_rope_room_are_read(tmp_path: Path) -> None:
    rope = pytest.importorskip("megatron_longrope.rope")
    factors = rope.RopeFactors(**fake.factors_json("longrope", fake.TARGET))
    short = factors.model_copy(
        update={"rescale": (1.0,) * fake.PAIRS, "target_length": fake.WINDOW}
    )
    ranges = (
        rope.FactorRange(up_to=fake.WINDOW, factors=short),
        rope.FactorRange(up_to=None, factors=factors),
    )
    rope.write_factors(tmp_path / "factors" / "final.json", rope.FactorSet(ranges=ranges))
    rope.write_factors(tmp_path / "factors" / "short.json", short)
    groups = factors_by_target(read_run(tmp_path).factors)
    assert [item.label for item in groups[fake.TARGET]] == ["LongRoPE", "LongRoPE, inputs to 256"]
    assert list(groups) == [fake.TARGET]  # the short factors' own file shows nothing new
    yarn = short.model_copy(update={"origin": rope.FactorOrigin(method="yarn")})
    rope.write_factors(tmp_path / "factors" / "yarn.json", yarn)
    beside = factors_by_target(read_run(tmp_path).factors)
    assert [item.label for item in beside[fake.WINDOW]] == [
        "YaRN",
        "LongRoPE",
    ]  # but here they stand beside another's
    assert beside[fake.TARGET] == groups[fake.TARGET]
    expected_waves = 2 * np.pi / rope.inverse_frequencies(fake.BASE, fake.HEAD_DIM).numpy()
    np.testing.assert_allclose(
        wavelengths(groups[fake.TARGET][0].factors), expected_waves, rtol=1e-12
    )


def test_journals_of_the_search_room_are_read(tmp_path: Path) -> None:
    from megatron_longrope.search import read_journal

    for name, write in (("journals", fake.write_journals), ("factors", fake.write_factors)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    run = read_run(tmp_path)
    _, entries = read_journal(tmp_path / "journals" / "search_first.jsonl")
    journal = run.journals["search_first"].entries
    assert [entry.evaluation.perplexity for entry in journal] == pytest.approx(
        [entry.evaluation.perplexity for entry in entries]
    )
    found = {line.method: line.perplexity for line in baselines(journal, run.factors)}
    seeds = {entry.evaluation.perplexity for entry in entries if entry.provenance.origin == "seed"}
    assert found.keys() == {"pi", "ntk", "yarn"} and sorted(found.values()) == pytest.approx(
        sorted(seeds)
    )


@given(st.lists(st.tuples(st.floats(1, 1e6), st.booleans())))
def test_best_so_far_is_the_running_minimum_of_what_was_completed(
    values: list[tuple[float, bool]],
) -> None:
    curve = best_so_far(values)
    for end in range(len(values)):
        completed = [value for value, done in values[: end + 1] if done]
        assert curve[end] == min(completed, default=math.inf)


@given(st.lists(st.floats(-100, 100), min_size=1), st.integers(1, 20))
def test_running_mean(values: list[float], width: int) -> None:
    means = running_mean(values, width)
    for end in range(len(values)):
        assert means[end] == pytest.approx(
            np.mean(values[max(0, end + 1 - width) : end + 1]), abs=1e-9
        )


@given(st.floats(0.1, 1e6), st.floats(1.001, 1e6))
def test_ticks_are_few_ascending_and_inside(low: float, ratio: float) -> None:
    ticks = round_ticks(low, low * ratio)
    assert ticks == sorted(set(ticks)) and 3 <= len(ticks) <= 14
    assert all(low * (1 - 1e-9) <= tick <= low * ratio * (1 + 1e-9) for tick in ticks)


def test_resumed_steps_count_once() -> None:
    rows = [
        MetricsRow(stage="fine_tune", step=s, loss=v)
        for s, v in ((1, 3.0), (2, 2.0), (2, 1.9), (3, math.nan))
    ]
    assert [(row.step, row.loss) for row in by_stage(rows)["fine_tune"]][:2] == [(1, 3.0), (2, 1.9)]


def test_numbers_as_people_write_them() -> None:
    assert [short_length(n) for n in (256, 1024, 8192, 2 << 20, 1000)] == [
        "256",
        "1k",
        "8k",
        "2M",
        "1000",
    ]
    texts = [format_perplexity(v) for v in (None, 7.084, 1234.5, 2e7, math.inf)]
    assert texts == ["–", "7.08", "1,234", "2.0e+07", "∞"]
    assert [duration(s) for s in (4.2, 185, 7620)] == ["4.2 s", "3 min 05 s", "2 h 07 min"]
