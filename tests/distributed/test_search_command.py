"""`longrope search` with the model cut over processes finds what one process finds."""

from __future__ import annotations

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
