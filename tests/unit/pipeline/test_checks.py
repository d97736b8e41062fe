"""Checks of a run: the ratios that their texts name, computed from its rows."""

from __future__ import annotations

import math
from typing import Any

from megatron_longrope.artifacts.results import EvaluationRows
from megatron_longrope.artifacts.rows import AttentionFactorSource, PerplexityRow, RetrievalRow
from megatron_longrope.artifacts.summaries import ExportSummary
from megatron_longrope.pipeline.checks import run_checks
from megatron_longrope.pipeline.evaluating import extended_factor_set
from megatron_longrope.pipeline.measuring import RunModels
from megatron_longrope.rope import PositionInterpolation, RopeFactors, RopeGeometry

GEOMETRY = RopeGeometry(base=10000.0, head_dim=64, original_length=256)


def _factors(target: int) -> RopeFactors:
    return PositionInterpolation(scale=target / 256).factors(GEOMETRY)


MODELS = RunModels(
    "base",
    "extended",
    "control",
    [_factors(2048), _factors(8192)],
    _factors(2048),
    extended_factor_set([_factors(8192)], []),
    _factors(2048),
)


def _row(
    model: str,
    method: str,
    length: int,
    perplexity: float,
    attention_factor: AttentionFactorSource = "own",
    **more: Any,
) -> PerplexityRow:
    nats = 100 * math.log(perplexity)
    return PerplexityRow(
        model=model,
        method=method,
        attention_factor=attention_factor,
        length=length,
        tokens=100,
        nll_sum=nats,
        last_quarter_tokens=100,
        last_quarter_nll_sum=nats,
        document="d",
        **more,
    )


def test_checks_are_the_ratios_they_name() -> None:
    rows = [
        _row("base", "longrope", 2048, 20.0, "searched"),
        _row("base", "yarn", 2048, 21.0),
        _row("base", "yarn", 2048, 20.5, "searched"),
        _row("base", "yarn,searched ramp", 2048, 19.5),
        _row("base", "none", 256, 10.0),
        _row("control", "none", 256, 9.0),
        _row("extended", "longrope", 256, 9.1, "searched"),
        _row("extended", "longrope", 8192, 10.1, "searched"),
        _row("base", "none", 8192, 10.0, window=256, stride=64),
        _row("base", "none", 8192, 99.0),
    ]
    keys = [
        RetrievalRow(model="base", method="none", length=n, depth=d, trials=4, correct=c)
        for n, d, c in ((256, 0.0, 4), (256, 1.0, 4), (512, 0.0, 1), (512, 1.0, 0))
    ]
    checks = {
        (check.name, check.value, check.bound): check.met
        for check in run_checks(EvaluationRows.of([*rows, *keys]), ["passkey"], MODELS, 256)
    }
    assert checks == {
        ("search-beats-baselines", 20.0, 20.5): True,
        ("last-quarter", 10.1, 10.0): False,
        ("short-inputs", 9.1, 10.2): True,
        ("short-inputs", 9.1, 9.18): True,
        ("base-passkeys-inside", 1.0, 0.95): True,
        ("base-passkeys-beyond", 0.125, 0.1): False,
    }


def test_the_exported_folder_is_judged_where_it_was_measured() -> None:
    rows = [
        _row("base", "none", 256, 10.0),
        _row("extended", "longrope", 256, 9.1, "searched"),
        _row("exported", "longrope", 256, 11.0, "searched"),
        _row("extended", "longrope", 8192, 9.0, "searched"),
        _row("base", "none", 8192, 10.0, window=256, stride=64),
    ]
    keys = [
        RetrievalRow(model=model, method="longrope", length=256, trials=4, correct=correct)
        for model, correct in (("extended", 4), ("exported", 2))
    ]
    export = ExportSummary(folder="export", compared_length=8192, largest_difference=3.21e-3)
    checks = {
        check.name: check
        for check in run_checks(EvaluationRows.of([*rows, *keys]), ["passkey"], MODELS, 256, export)
    }
    assert checks["short-inputs"].value == 11.0 and not checks["short-inputs"].met
    assert checks["last-quarter"].value == 9.0  # nothing as exported at that length
    assert checks["passkeys"].value == 0.5 and "exported model" in checks["passkeys"].text
    assert checks["export"].value == 0.0032 and not checks["export"].met


def test_a_length_that_was_not_measured_as_exported_is_judged_too() -> None:
    keys = [
        RetrievalRow(model=model, method="longrope", length=length, trials=10, correct=correct)
        for model, length, correct in (
            ("extended", 128, 9),
            ("exported", 128, 10),
            ("extended", 3072, 0),
        )
    ]
    (check,) = run_checks(EvaluationRows.of(keys), ["passkey"], MODELS, 256)
    assert check.value == 0.0 and "extended model, worst length (3k)" in check.text


def test_an_export_whose_losses_are_not_finite_is_missed() -> None:
    export = ExportSummary(folder="export", compared_length=8192, largest_difference=None)
    (check,) = run_checks(EvaluationRows.of([]), [], MODELS, 256, export)
    assert check.value is None and not check.met
    not_compared = ExportSummary(folder="export")
    assert run_checks(EvaluationRows.of([]), [], MODELS, 256, not_compared) == []


def test_a_loss_that_was_not_finite_meets_nothing_and_beats_nothing() -> None:
    rows = [
        _row("base", "longrope", 2048, 20.0, "searched"),
        _row("base", "yarn", 2048, math.inf),
        _row("base", "pi", 2048, 30.0),
        _row("base", "none", 256, math.inf),
        _row("control", "none", 256, 9.0),
        _row("extended", "longrope", 256, math.inf, "searched"),
    ]
    checks = run_checks(EvaluationRows.of(rows), [], MODELS, 256)
    assert [(check.value, check.bound, check.met) for check in checks] == [
        (20.0, 30.0, True),
        (None, None, False),
        (None, 9.18, False),
    ]


def test_no_finite_value_meets_a_bound_that_is_not_finite() -> None:
    rows = [
        _row("base", "none", 8192, math.inf, window=256, stride=64),
        _row("extended", "longrope", 8192, 50.0, "searched"),
        _row("base", "none", 256, math.inf),
        _row("extended", "longrope", 256, 50.0, "searched"),
    ]
    checks = run_checks(EvaluationRows.of(rows), [], MODELS, 256)
    assert [(check.name, check.bound, check.met) for check in checks] == [
        ("last-quarter", None, False),
        ("short-inputs", None, False),
    ]
