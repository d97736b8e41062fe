"""The page and the plot of `longrope search`: curves against plain sums over the journals, and what
is compared."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.report import write_convergence_plot, write_report
from megatron_longrope.report.convergence import convergence
from megatron_longrope.report.run_files import read_run
from megatron_longrope.search import (
    Candidate,
    Evaluation,
    Gradient,
    Journal,
    JournalEntry,
    Provenance,
)
from tests.support import report_fake_run as fake
from tests.unit.report.test_page import Page

TOKENS = (700, 300)
OBJECTIVE = {
    "target_length": fake.FIRST,
    "lengths": TOKENS,
    "documents_sha256": "abc",
    "early_stopping": None,
}
HOSTILE = "<img src=x onerror=alert(1)>"


def whole(loss: float, *, gradient: bool = False) -> Evaluation:
    by = Gradient(np.zeros(fake.PAIRS), 0.0) if gradient else None
    return Evaluation(tuple(loss * count for count in TOKENS), TOKENS, gradient=by)


def stopped(loss: float) -> Evaluation:
    return Evaluation((loss * TOKENS[0],), TOKENS[:1], completed=False)


def sample(loss: float) -> Evaluation:
    by = Gradient(np.zeros(fake.PAIRS), 0.0)
    return Evaluation((loss * TOKENS[1],), TOKENS[1:], completed=False, gradient=by, sample=(1,))


HYBRID = [
    whole(3.2),
    whole(math.nan),
    whole(3.0),
    sample(1.0),
    whole(2.9),
    whole(3.1, gradient=True),
]
EVOLUTION = [whole(math.inf), stopped(1.0), whole(3.1), whole(3.05)]


def write_journal(
    folder: Path, name: str, searcher: str, evaluations: list[Evaluation], **objective: Any
) -> None:
    folder.joinpath("journals").mkdir(exist_ok=True)
    path = folder / "journals" / f"{name}.jsonl"
    with Journal.open(path, {"searcher": searcher}, OBJECTIVE | objective) as journal:
        for index, evaluation in enumerate(evaluations):
            candidate, made = Candidate((1.0,) * fake.PAIRS), Provenance(0, "seed")
            journal.append(
                JournalEntry(index, candidate, made, evaluation, 0.5, evaluation.cost_tokens)
            )


def baseline(method: str, attention_factor: str, perplexity: float | None) -> dict[str, Any]:
    ratio = perplexity and perplexity / math.exp(2.9)
    interval = {"low": ratio and ratio - 0.01, "high": ratio and ratio + 0.02}
    return {
        "method": method,
        "attention_factor": attention_factor,
        "perplexity": perplexity,
        "ratio": ratio,
        **interval,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What two searchers leave in one directory, and a third that was scored on other documents."""
    write_journal(tmp_path, "search-2048", "hybrid", HYBRID)
    write_journal(
        tmp_path,
        "search-2048-evolution",
        "evolution",
        EVOLUTION,
        early_stopping={"error_level": 0.01},
        ladder=[[64, 64]],
    )
    write_journal(tmp_path, "search-2048-cma", "cma", HYBRID, documents_sha256="other")
    write_journal(tmp_path, "search-4096", "hybrid", HYBRID, target_length=4096)
    (tmp_path / "factors").mkdir()
    for name in ("best", "search-2048"):
        fake.write_json(
            tmp_path / "factors" / f"{name}.json",
            fake.factor_file((None, fake.factors_json("longrope", fake.FIRST))),
        )
    rows = [
        baseline("none", "own", None),
        baseline("yarn", "own", 19.0),
        baseline(HOSTILE, "searched", 20.0),
    ]
    costs = {
        "evaluations": 6,
        "stopped_early": 0,
        "tokens": 5300,
        "backward_tokens": 1300,
        "flops": 1e12,
        "seconds": 3.0,
    }
    fake.write_json(
        tmp_path / "result.json",
        {
            "perplexity": math.exp(2.9),
            "target_length": fake.FIRST,
            "journal": "search-2048",
            "baselines": rows,
            **costs,
            "baselines_cost": costs | {"evaluations": 17},
        },
    )
    return tmp_path


def test_curves_are_costs_and_best_perplexities_of_the_same_documents(folder: Path) -> None:
    found = convergence(read_run(folder).journals, "search-2048-evolution")
    curves = {curve.searcher: curve for curve in found.curves}
    assert curves.keys() == {"hybrid", "evolution"} and found.left_out == ["search-2048-cma"]
    hybrid, evolution = curves["hybrid"], curves["evolution"]
    # passes: a sample of 300 tokens forward and backward is 0.3 · 2.5, a whole gradient 2.5, the
    # stopped one 0.7
    assert hybrid.costs == pytest.approx([1, 2, 3, 3.75, 4.75, 7.25])
    assert evolution.costs == pytest.approx([1, 1.7, 2.7, 3.7])
    assert np.log(hybrid.perplexities) == pytest.approx([3.2, 3.2, 3.0, 3.0, 2.9, 2.9])
    assert np.log(evolution.perplexities) == pytest.approx([math.inf, math.inf, 3.1, 3.05])
    assert (hybrid.tokens, hybrid.backward_tokens, hybrid.stopped_early) == (5300, 1300, 0)
    assert (evolution.tokens, evolution.backward_tokens, evolution.stopped_early) == (3700, 0, 1)


def test_the_plot_is_a_png(folder: Path) -> None:
    path = write_convergence_plot(folder)
    assert path == folder / "report" / "convergence.png"
    assert path.read_bytes().startswith(b"\x89PNG") and [
        file.name for file in path.parent.iterdir()
    ] == [path.name]
    first = path.read_bytes()
    assert write_convergence_plot(folder).read_bytes() == first


def test_the_page_has_margins_cost_plot_and_factors(folder: Path) -> None:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert [section["id"] for section in page.of("section")] == [
        "baselines",
        "convergence",
        "factors",
    ]
    assert sum("aria-label" in svg for svg in page.of("svg")) == 2
    ids = Counter(attributes["id"] for _, attributes in page.tags if attributes.get("id"))
    assert max(ids.values()) == 1
    ratio = 19 / math.exp(2.9)
    for text in (
        f"{100 * (ratio - 1):+.2f} %",
        f"{100 * (ratio - 1.01):+.2f} % to {100 * (ratio - 0.98):+.2f} %",
    ):
        assert text.replace("-", "−") in page.text
    for text in (
        "18.1741",
        "5300",
        "7.2",
        "this took 17 evaluations",
        "Not shown, scored otherwise: search-2048-cma.",
    ):
        assert text in page.text
    assert HOSTILE in page.text and not page.of("img")


def test_the_page_shows_held_out_margins_beside_those_searched_on(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    cost = result["baselines_cost"] | {"evaluations": 23}
    held_out = {
        "sha256": "0" * 64,
        "documents": ["x.txt", HOSTILE],
        "perplexity": 18.5,
        "baselines": [baseline("yarn", "own", 19.25)],
        "cost": cost,
    }
    fake.write_json(folder / "result.json", result | {"held_out": held_out})
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert [section["id"] for section in page.of("section")][:2] == ["baselines", "held-out"]
    for text in ("x.txt", HOSTILE, "18.50", "19.25", "This took 23 evaluations"):
        assert text in page.text
    assert not page.of("img")


def test_a_mixture_is_called_a_score_and_its_parts_have_their_own_numbers(folder: Path) -> None:
    (folder / "journals" / "search-2048.jsonl").unlink()
    write_journal(folder, "search-2048", "hybrid", HYBRID, weights=[1.0, 0.5])
    result = json.loads((folder / "result.json").read_text())
    parts = [
        {"name": "text", "loss": 3.4, "perplexity": 29.96},
        {"name": "answers", "loss": 0.25, "perplexity": None},
    ]
    as_score = {"score": result["perplexity"], "perplexity": None, "parts": parts}
    row = baseline("yarn", "own", 19.0)
    rows = [row | {"score": row["perplexity"], "perplexity": None, "parts": parts}]
    fake.write_json(folder / "result.json", result | as_score | {"baselines": rows})
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    for text in ("Score at 2k", "text perplexity 29.9600, answers 0.2500 nats", "answers, nats"):
        assert text in page.text
    for text in ("best score", "Best score, exp(loss) against cost"):
        assert text in page.text
    assert "best perplexity" not in page.text and "Perplexity at" not in page.text


def test_a_result_that_names_no_journal_is_of_the_default_searcher(folder: Path) -> None:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text())
    del result["journal"], result["baselines_cost"]
    fake.write_json(folder / "result.json", result)
    older = Page(write_report(folder).read_text(encoding="utf-8"))
    assert older.of("section") == page.of("section") and "18.1741" in older.text


def test_without_its_journal_the_page_says_so(folder: Path) -> None:
    (folder / "journals" / "search-2048.jsonl").unlink()
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert [p["id"] for p in page.of("p") if p.get("class") == "missing"] == ["convergence"]
    with pytest.raises(InputError, match=r"search-2048\.jsonl"):
        write_convergence_plot(folder)


def test_a_search_with_nothing_usable_yet_is_no_curve(folder: Path) -> None:
    write_journal(folder, "search-2048-random", "random", [whole(math.nan)])
    curves = convergence(read_run(folder).journals, "search-2048").curves
    assert {curve.searcher for curve in curves} == {"hybrid", "evolution"}


def test_one_evaluation_and_no_finite_baseline_still_make_a_plot(folder: Path) -> None:
    (folder / "journals" / "search-2048.jsonl").unlink()
    (folder / "journals" / "search-2048-evolution.jsonl").unlink()
    write_journal(folder, "search-2048", "hybrid", [whole(3.0)])
    result = json.loads((folder / "result.json").read_text()) | {
        "baselines": [baseline("none", "own", None)]
    }
    fake.write_json(folder / "result.json", result)
    assert write_convergence_plot(folder).is_file() and write_report(folder).is_file()


def test_a_directory_of_another_kind_has_no_such_plot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result of a search"):
        write_convergence_plot(tmp_path)
