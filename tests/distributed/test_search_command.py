"""`longrope search` with the model cut over processes finds what one process finds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import pytest

from launchers.commands.search import command
from launchers.factor_search import run_factor_search
from megatron_longrope.artifacts.summaries import SearchSummary
from tests.support.spawn import run_distributed
from tests.support.tiny_run import TUNED, make_model, make_texts

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def search(*arguments: str) -> SearchSummary | None:
    """Runs on every rank: the command with these options; the main rank returns what it found."""
    context: click.Context = command.make_context("search", list(arguments))
    context.params.pop("json_path")
    found = run_factor_search(**context.params)
    return found[0] if found else None


def test_two_context_ranks_find_the_single_process_s_perplexity(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    model = make_model(tmp_path / "model", texts)
    asked = [
        "--model",
        str(model),
        "--text",
        str(texts[0]),
        str(texts[1]),
        "--target",
        str(TUNED),
        "--ramp-rounds",
        "1",
        "--passes",
        "1",
    ]
    alone = search(*asked, "--out", str(tmp_path / "alone"))
    spread, other = run_distributed(
        2, search, *asked, "--out", str(tmp_path / "spread"), "--context-parallel", "2"
    )
    assert alone is not None and other is None
    assert spread.perplexity == pytest.approx(alone.perplexity, rel=1e-6)
    assert (tmp_path / "spread" / "report" / "convergence.png").is_file()
    assert spread.tokens == alone.tokens and spread.backward_tokens == alone.backward_tokens > 0


def test_recomputation_changes_neither_a_search_nor_its_journal(tmp_path: Path) -> None:
    """A search that kept everything is gone on with by one that computes again."""
    texts = make_texts(tmp_path / "texts")
    model = make_model(tmp_path / "model", texts)
    asked = ["--model", str(model), "--text", str(texts[0]), "--target", str(TUNED)]
    asked += ["--starts-from", "yarn", "--searcher", "gradient", "--passes", "8"]
    journals, found = {}, {}
    for kind, options in (("none", []), ("full", ["--recompute", "full", "--offload"])):
        out = tmp_path / kind
        found[kind] = search(*asked, *options, "--out", str(out))
        (journal,) = (out / "journals").glob("search-*.jsonl")
        journals[kind] = [json.loads(line) for line in journal.read_text().splitlines()]
    assert found["none"] is not None and found["full"] is not None
    assert found["full"].perplexity == pytest.approx(found["none"].perplexity, rel=1e-5)
    header, *entries = journals["full"]
    assert header == journals["none"][0]
    assert len(entries) == len(journals["none"]) - 1
    first, its = entries[0], journals["none"][1]
    assert first["nll_sums"] == its["nll_sums"]
    (start,), (tokens,) = first["nll_sums"], first["token_counts"]
    assert math.log(found["full"].perplexity) < start / tokens - 1e-6  # it descends
    again = search(*asked, "--recompute", "full", "--out", str(tmp_path / "none"))
    assert again is not None and again.recovered == again.evaluations == found["none"].evaluations
    assert again.perplexity == found["none"].perplexity
