"""Schemas of a run's files: each is read back as it was written, and what an earlier release wrote
is read too."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_longrope.artifacts.cost import SearchCost, forward_equivalents
from megatron_longrope.artifacts.evaluations import Candidate, Evaluation, Gradient, Provenance
from megatron_longrope.artifacts.factor_file import read_factors
from megatron_longrope.artifacts.journal import (
    Journal,
    JournalEntry,
    read_journal,
    read_search_journal,
)
from megatron_longrope.artifacts.metrics import MetricsFile, MetricsRow, read_metrics
from megatron_longrope.artifacts.records import FileRecord, read_record, write_record
from megatron_longrope.artifacts.stages import StageMarker, StageRecord
from megatron_longrope.artifacts.summaries import (
    BaselineMargin,
    Check,
    HeldOut,
    ModelFacts,
    RunSummary,
    SearchSummary,
    named_checkpoint,
    read_summary,
)
from megatron_longrope.errors import InputError
from megatron_longrope.report import write_report

EARLIER = Path(__file__).parent / "earlier_run"
COST = SearchCost(evaluations=6, tokens=5300, backward_tokens=1300, flops=1e12, seconds=3.0)
RUN = RunSummary(
    format=1,
    checkpoint="checkpoints/extended",
    model=ModelFacts(name="demo", parameters=3_803_392, original_length=256, head_dim=64),
    target_length=8192,
    stages=(StageRecord(name="import", seconds=0.07, status="done"),),
    checks=(
        Check(name="passkeys", text="found", value=0.95, bound=0.9, met=True),
        Check(name="last-quarter", text="perplexity", value=None, bound="1.10 ×", met=False),
    ),
    held_out=HeldOut(sha256="00ff", documents=("enum.py",)),
    environment={"python": "3.11", "threads": 1, "cores": None},
    summary={"found": 0.95, "perplexity": None},
)
MARGIN = BaselineMargin(
    method="yarn", temperature="own", perplexity=19.0, ratio=1.05, low=None, high=None
)
NO_PERPLEXITY = MARGIN.model_copy(update={"method": "none", "perplexity": None, "ratio": None})
SEARCH = SearchSummary(
    **COST.model_dump(),
    perplexity=18.2,
    stopped_early=1,
    forward_equivalents=7.2,
    recovered=2,
    target_length=2048,
    journal="search-2048-cma",
    baselines=(NO_PERPLEXITY, MARGIN),
    baselines_cost=COST,
    factors="factors/best.json",
)


@pytest.mark.parametrize(
    "record",
    [
        RUN,
        SEARCH,
        COST,
        StageMarker(status="started", inputs={"length": 8, "of": None}, seconds=0.0),
        StageMarker(status="done", inputs={}, seconds=1.5, result={"rows": [1, 2]}),
        MetricsRow(stage="train", step=1, loss=2.5, lr=1e-4, tokens=5, grad_norm=0.5, seconds=1.0),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_is_read_back_as_it_was_written(tmp_path: Path, record: FileRecord) -> None:
    write_record(tmp_path / "file.json", record)
    assert read_record(tmp_path / "file.json", type(record)) == record


def test_results_of_runs_and_of_searches_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_record(path, RUN)
    assert read_summary(path) == RUN and named_checkpoint(path) == "checkpoints/extended"
    write_record(path, SEARCH)
    assert read_summary(path) == SEARCH and named_checkpoint(path) is None
    assert SEARCH.best_baseline == MARGIN and SEARCH.journal_name == "search-2048-cma"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"status": "done", "inputs": {}, "seconds": "1"}', "seconds: "),
        ('{"status": "over", "inputs": {}, "seconds": 1}', "status: "),
        ('{"status": "done", "seconds": 1}', "inputs: "),
        ("[]", r"\(whole\): "),
        ('{\n"status": "do', "not valid JSON at line 2"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, content: str, place: str) -> None:
    path = tmp_path / "stage.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"stage\.json: {place}") as caught:
        read_record(path, StageMarker)
    assert "\n" not in str(caught.value)


def test_a_key_of_a_later_release_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    marker = StageMarker(status="done", inputs={}, seconds=1.0)
    path.write_text(json.dumps({**marker.model_dump(), "later": [1]}))
    assert read_record(path, StageMarker) == marker


def test_a_diverged_step_is_kept_as_such(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", "train")
    metrics.write(MetricsRow(stage="train", step=1, loss=math.nan))
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row.loss) and row.lr is None


def test_a_damaged_metrics_file_is_refused_on_opening_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "train", "step": 1, "loss": 1.0}\n{"stage": "train"}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2\.step"):
        MetricsFile(path, "train")


def entry(
    index: int, tokens: int, *, gradient: bool = False, booked: float | None = None
) -> JournalEntry:
    by = Gradient(np.zeros(1), 0.0) if gradient else None
    scored = Evaluation((2.0 * tokens,), (tokens,), gradient=by, forward_equivalents=booked)
    return JournalEntry(index, Candidate((1.0,)), Provenance(0, "seed"), scored, 0.5, tokens)


def test_a_cost_adds_up_tokens_and_seconds() -> None:
    cost = SearchCost.of([entry(0, 100), entry(1, 40, gradient=True)], flops=10.0)
    assert cost == SearchCost(
        evaluations=2, tokens=140, backward_tokens=40, flops=10.0, seconds=1.0
    )


def test_an_entry_says_what_it_took_and_one_of_before_is_estimated(tmp_path: Path) -> None:
    booked = entry(0, 40, gradient=True, booked=0.93)
    with Journal.open(tmp_path / "journal.jsonl", {"searcher": "cma"}, "a stub") as journal:
        journal.append(booked)
    (read,) = read_journal(tmp_path / "journal.jsonl")[1]
    assert read.evaluation.forward_equivalents == 0.93
    assert forward_equivalents(read, document_tokens=100) == 0.93
    before = entry(1, 40, gradient=True)
    assert "forward_equivalents" not in before.to_json()
    assert forward_equivalents(before, document_tokens=100) == pytest.approx(0.4 * 2.5)
    assert forward_equivalents(entry(2, 50), document_tokens=100) == 0.5


def test_the_header_of_a_model_s_search_says_what_may_be_compared(tmp_path: Path) -> None:
    path, objective = tmp_path / "journal.jsonl", {"target_length": 64, "lengths": [64, 60]}
    stopping = {"early_stopping": {"error_level": 0.01}, "ladder": [[8]]}
    with Journal.open(path, {"searcher": "cma"}, objective | {"model": "a"} | stopping) as journal:
        journal.append(entry(0, 124))
    read = read_search_journal(path)
    assert (read.header.searcher, read.entries) == ("cma", read_journal(path)[1])
    assert read.header.objective.comparable == {**objective, "lengths": (64, 60), "model": "a"}


def test_a_journal_of_something_else_is_no_model_s_search(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal.open(path, {"searcher": "cma"}, "a stub").close()
    with pytest.raises(InputError, match=r"journal\.jsonl: line 1\.objective"):
        read_search_journal(path)


def test_an_earlier_release_s_files_are_read() -> None:
    summary = read_summary(EARLIER / "result.json")
    assert isinstance(summary, RunSummary)
    assert summary.target_length == 8192 and summary.model is not None
    assert summary.model.original_length == 256 and len(summary.stages) == 11
    assert summary.checks == () and len(summary.summary) == 9  # its checks had another name
    assert named_checkpoint(EARLIER / "result.json") == "checkpoints/extended"
    marker = read_record(EARLIER / "stages" / "import.json", StageMarker)
    assert marker.is_done and marker.result == {"tensors": 39, "bytes": 7606784}
    assert [(row.stage, row.step) for row in read_metrics(EARLIER / "metrics.jsonl")] == [
        ("fine-tune-2048", 1),
        ("fine-tune-2048", 2),
        ("control", 1),
        ("control", 2),
    ]
    factors = read_factors(EARLIER / "factors" / "search-8192.json")
    assert factors.for_length(8192).target_length == 8192


def test_an_earlier_release_s_journal_is_read_and_written_alike(tmp_path: Path) -> None:
    path = EARLIER / "journals" / "search-8192.jsonl"
    journal, (header, entries) = read_search_journal(path), read_journal(path)
    assert journal.header.searcher == "hybrid" and len(journal.entries) == 4
    line = json.loads(path.read_text().splitlines()[1])
    loss = sum(line["nll_sums"]) / sum(line["token_counts"])
    assert journal.entries[0].evaluation.perplexity == pytest.approx(math.exp(loss))
    ours = {key: value for key, value in header.items() if key not in ("format", "version")}
    objective = ours.pop("objective")
    with Journal.open(tmp_path / "again.jsonl", ours, objective) as again:
        for each in entries:
            again.append(each)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_the_report_draws_an_earlier_release_s_run(tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER, tmp_path / "run"))
    page = write_report(run).read_text(encoding="utf-8")
    for section in ("factors", "search", "training", "length", "table", "provenance"):
        assert f'<section id="{section}">' in page
