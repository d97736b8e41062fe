"""Checks are computed from rows."""

from __future__ import annotations

import math
from typing import Any

from megatron_longrope.pipeline.checks import run_checks
from megatron_longrope.pipeline.evaluating import extended_factor_set
from megatron_longrope.pipeline.measuring import RunModels
from tests.support.factor_sets import made_factors


def _row(
    model: str, method: str, length: int, perplexity: float, temperature: str = "own", **more: Any
) -> dict[str, Any]:
    nats = 100 * math.log(perplexity)
    return {
        "model": model,
        "method": method,
        "temperature": temperature,
        "length": length,
        "tokens": 100,
        "nll_sum": nats,
        "last_quarter_tokens": 100,
        "last_quarter_nll_sum": nats,
        "protocol": "first-token",
        "document": "d",
        **more,
    }


def test_checks_are_the_ratios_they_name() -> None:
    models = RunModels(
        "base",
        "extended",
        "control",
        [made_factors(2048), made_factors(8192)],
        made_factors(2048),
        extended_factor_set([made_factors(8192)], []),
        made_factors(2048),
    )
    rows = [
        _row("base", "longrope", 2048, 20.0, "searched"),
        _row("base", "yarn", 2048, 21.0),
        _row("base", "yarn", 2048, 20.5, "searched"),
        _row("base", "none", 256, 10.0),
        _row("control", "none", 256, 9.0),
        _row("extended", "longrope", 256, 9.1, "searched"),
        _row("extended", "longrope", 8192, 11.2, "searched"),
        _row("base", "none", 8192, 10.0, protocol="sliding"),
        _row("base", "none", 8192, 99.0),
    ]
    keys = [
        {"model": "base", "method": "none", "length": n, "depth": d, "trials": 4, "correct": c}
        for n, d, c in ((256, 0.0, 4), (256, 1.0, 4), (512, 0.0, 1), (512, 1.0, 0))
    ]
    checks = {
        (check.name, check.value, check.bound): check.met
        for check in run_checks(rows, keys, models, 256)
    }
    assert checks == {
        ("search-beats-baselines", 20.0, 20.5): True,
        ("last-quarter", 11.2, 11.0): False,
        ("short-inputs", 9.1, 10.2): True,
        ("short-inputs", 9.1, 9.18): True,
        ("base-passkeys-inside", 1.0, 0.95): True,
        ("base-passkeys-beyond", 0.125, 0.1): False,
    }
