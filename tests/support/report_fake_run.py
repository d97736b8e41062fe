"""Writes a run directory like the pipeline's, with invented but plausible numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longrope.search import (
    Candidate,
    Evaluation,
    EvolutionSearch,
    EvolutionSettings,
    Journal,
    SearchSpace,
    SearchTask,
)
from megatron_longrope.search.loop import run_search

WINDOW, FIRST, TARGET = 256, 2048, 8192
HEAD_DIM, BASE, PAIRS = 64, 10000.0, 32
LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
DOCUMENTS = ["statistics.py", "argparse.rst", "<script>alert('x')</script>"]
METHODS = {
    "none": 1.9,
    "pi": 0.42,
    "ntk": 0.30,
    "dynamic-ntk": 0.26,
    "yarn": 0.13,
    "longrope": 0.09,
}
DEPTHS = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]


def write_fake_run(run_dir: Path) -> Path:
    """Writes the whole run directory and returns it."""
    for folder in ("factors", "evals", "journals"):
        (run_dir / folder).mkdir(parents=True)
    (run_dir / "config.yaml").write_text(
        "model: demo\ntarget: 8k\nseed: 7\nsearch:\n  seed: 11\n  iterations: 40\n"
    )
    write_json(run_dir / "result.json", _result())
    write_factors(run_dir / "factors")
    write_journals(run_dir / "journals")
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _metrics()))
    write_json(run_dir / "evals" / "perplexity.json", {"rows": perplexity_rows()})
    write_json(run_dir / "evals" / "positions.json", {"rows": _position_rows()})
    write_json(run_dir / "evals" / "passkey.json", {"rows": _passkey_rows()})
    return run_dir


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")


def method_factors(method: str, scale: float) -> tuple[list[float], float]:
    """Returns λ per pair and t of a method by its published formula; LongRoPE's are invented."""
    i = np.arange(PAIRS)
    if method == "pi":
        rescale = np.full(PAIRS, scale)
    elif method in ("ntk", "dynamic-ntk"):
        rescale = (scale if method == "ntk" else scale * 1.3) ** (2 * i / (HEAD_DIM - 2))
    elif method == "yarn":
        turns = WINDOW / (2 * np.pi * BASE ** (2 * i / HEAD_DIM))
        keep = np.clip((turns - 1) / 31, 0, 1)
        rescale = 1 / (keep + (1 - keep) / scale)
    elif method == "longrope":
        rescale = np.round(1 + (scale * 1.1 - 1) / (1 + np.exp(-(i - 13) / 2.2)), 2)
    else:
        rescale = np.ones(PAIRS)
    attention_factor = {"yarn": 0.1 * math.log(scale) + 1, "longrope": 1.14}.get(method, 1.0)
    return rescale.tolist(), attention_factor


def factors_json(method: str, target: int, **changes: Any) -> dict[str, Any]:
    """Returns the JSON of one RopeFactors."""
    rescale, attention_factor = method_factors(method, target / WINDOW)
    values = {
        "rescale": rescale,
        "start_tokens": 4 if method == "longrope" else 0,
        "attention_factor": attention_factor,
        "original_length": WINDOW,
        "target_length": target,
        "base": BASE,
        "head_dim": HEAD_DIM,
        "origin": {"method": method, "model": None, "data": None, "score": None, "source": None},
        "hf_inverse_frequencies": None,
    }
    if method == "longrope":
        values["origin"]["score"] = math.log(21.9)
    return values | changes


def factor_file(*ranges: tuple[int | None, dict[str, Any]]) -> dict[str, Any]:
    """Returns the JSON of a factors file."""
    entries = [{"up_to": up_to, "factors": factors} for up_to, factors in ranges]
    return {"format": "longrope-factors", "version": 1, "ranges": entries}


def perplexity_rows() -> list[dict[str, Any]]:
    """Returns rows of all models, methods, attention factors and lengths, per document."""
    rows = []
    for method, growth in METHODS.items():
        for source in ("own",) if method == "none" else ("own", "searched"):
            bonus = 0.05 if source == "searched" and method != "longrope" else 0.0
            rows += _documents("base", method, source, 3.04, growth - bonus * 0.6, LENGTHS)
    for method, growth in {"pi": 0.10, "yarn": 0.05, "longrope": -0.012}.items():
        for source in ("own", "searched"):
            rows += _documents(
                "extended",
                method,
                source,
                3.05,
                growth - 0.01 * (source == "searched"),
                LENGTHS,
            )
    return rows + _documents("control", "none", "own", 3.03, 1.7, LENGTHS)


def _documents(
    model: str, method: str, source: str, loss: float, growth: float, lengths: list[int]
) -> list[dict[str, Any]]:
    rows = []
    for length in lengths:
        for index, document in enumerate(DOCUMENTS):
            octaves = math.log2(length / WINDOW)
            nll = loss + growth * octaves / 2.2 / (1 + 0.12 * octaves) + 0.06 * (index - 1)
            sums = {"tokens": length - 1 - 7 * index, "nll_sum": nll * (length - 1 - 7 * index)}
            row = {"model": model, "method": method, "length": length}
            row["attention_factor"] = source
            rows.append(row | {"document": document, "perplexity": math.exp(nll)} | sums)
    return rows


def _position_rows() -> list[dict[str, Any]]:
    edges = [0, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192]
    curves = [
        ("base", "none", 2.3),
        ("base", "yarn", 0.3),
        ("base", "longrope", 0.2),
        ("extended", "pi", 0.12),
    ]
    rows = []
    for model, method, growth in [
        *curves,
        ("extended", "yarn", 0.06),
        ("extended", "longrope", -0.01),
        ("control", "none", 2.1),
    ]:
        for start, end in zip(edges, edges[1:], strict=False):
            middle = (start + end) / 2
            octaves = max(0.0, math.log2(middle / WINDOW))
            nll = 3.0 + 0.9 * math.exp(-middle / 60) + growth * octaves / (2 + 0.4 * octaves)
            tokens = 3 * (end - start)
            row = {"model": model, "method": method, "attention_factor": "own", "length": TARGET}
            row |= {"bucket_start": start, "bucket_end": end}
            rows.append(row | {"tokens": tokens, "nll_sum": nll * tokens})
    return rows


def _passkey_rows() -> list[dict[str, Any]]:
    rows = []
    for model, method in (("base", "none"), ("extended", "longrope")):
        for length in LENGTHS:
            for depth in DEPTHS:
                near = 1.0 if length <= WINDOW else max(0.0, 0.55 - (1 - depth) * length / 500)
                share = near if model == "base" else 1.0 - 0.05 * (length > 4096 and depth < 0.3)
                row = {"model": model, "method": method, "length": length, "depth": depth}
                rows.append(row | {"trials": 20, "correct": round(20 * share), "accuracy": share})
    return rows


def _metrics() -> list[dict[str, Any]]:
    noise = np.random.default_rng(3)
    rows = []
    for stage, start, end in (("fine_tune", 3.9, 3.02), ("control", 3.06, 3.0)):
        for step in range(1, 301):
            loss = end + (start - end) * math.exp(-step / 40) + 0.06 * noise.standard_normal()
            lr = 3e-4 * min(1, step / 20) * (1 - step / 320)
            row = {"stage": stage, "step": step, "loss": loss, "lr": lr, "tokens": step * 16384}
            rows.append(row | {"grad_norm": 0.8, "seconds": 1.1})
    return rows


def write_factors(folder: Path) -> None:
    """Writes the factors files of both stages: baselines, the first search's and the final set."""
    for target, stage in ((FIRST, "first"), (TARGET, "second")):
        for method in ("pi", "ntk", "dynamic-ntk", "yarn"):
            write_json(
                folder / f"{method}_{stage}.json", factor_file((None, factors_json(method, target)))
            )
    write_json(folder / "search_first.json", factor_file((None, factors_json("longrope", FIRST))))
    short = factors_json("longrope", WINDOW, rescale=np.linspace(1, 1.4, PAIRS).round(2).tolist())
    final = factor_file((WINDOW, short), (None, factors_json("longrope", TARGET)))
    write_json(folder / "final.json", final)


def write_journals(folder: Path) -> None:
    """Writes the journals of two real searches of an invented objective."""
    for stage, target in (("search_first", FIRST), ("search_second", TARGET)):
        scale = target / WINDOW
        seeds = [Candidate(*_seed(method, scale)) for method in ("pi", "ntk", "yarn")]
        settings = EvolutionSettings(
            population=16, parents=8, mutants=6, crossovers=6, iterations=12
        )
        objective = {"target_length": target, "lengths": [5000]}
        space, task = SearchSpace.first_stage(PAIRS, scale), SearchTask(target, scale, 1)
        search = EvolutionSearch(space, settings, seeds, 5, task)
        with Journal.open(folder / f"{stage}.jsonl", search.identity(), objective) as journal:
            run_search(search, lambda batch, _, s=scale: [_score(c, s) for c in batch], journal)


def _seed(method: str, scale: float) -> tuple[tuple[float, ...], int, float]:
    rescale, attention_factor = method_factors(method, scale)
    return tuple(rescale), 0, attention_factor


def _score(candidate: Candidate, scale: float) -> Evaluation:
    """Returns a score that is best at the invented LongRoPE factors and falls off smoothly."""
    ideal = np.log(method_factors("longrope", scale)[0])
    distance = (
        float(np.mean((np.log(candidate.rescale) - ideal) ** 2))
        + (candidate.attention_factor - 1.14) ** 2
    )
    return Evaluation((5000 * (3.05 + 0.25 * distance),), (5000,))


def _result() -> dict[str, Any]:
    checks = [
        (
            "search-beats-baselines",
            "LongRoPE's perplexity at 8× the window below the best baseline",
            23.41,
            25.02,
            True,
        ),
        (
            "last-quarter",
            "perplexity over the last quarter ÷ base model's inside its window",
            1.04,
            1.1,
            True,
        ),
        (
            "passkeys",
            "passkey exact matches at every length up to the target",
            "96 %",
            "≥ 90 %",
            True,
        ),
        ("short-inputs", "short inputs after recovery: perplexity change", 0.027, 0.02, False),
    ]
    names = [
        "convert",
        "search_first",
        "fine_tune",
        "control",
        "search_second",
        "recovery",
        "evaluate",
        "export",
    ]
    seconds = [2.4, 148.0, 171.3, 160.2, 122.9, 40.0, 96.5, 3.1]
    environment = {
        "python": "3.11.9",
        "torch": "2.13.0",
        "megatron_core": "0.16.1",
        "cpu": "2-core test",
        "threads": 2,
    }
    return {
        "format": 1,
        "model": {
            "name": "longrope-demo-3.7M",
            "parameters": 3_712_000,
            "original_length": WINDOW,
            "hidden_size": 256,
        },
        "target_length": TARGET,
        "stages": [
            {"name": n, "seconds": s, "status": "done"} for n, s in zip(names, seconds, strict=True)
        ],
        "checks": [
            dict(zip(("name", "text", "value", "bound", "met"), check, strict=True))
            for check in checks
        ],
        "held_out": {"sha256": "9f2c" * 16, "documents": DOCUMENTS},
        "environment": environment,
        "summary": {
            "gain_over_best_baseline": 0.064,
            "evaluations": 272,
            "note": "invented numbers",
        },
    }
