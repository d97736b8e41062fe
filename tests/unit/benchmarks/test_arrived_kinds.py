"""Four ways in which a model may arrive scaled: a search beyond them pays on held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.arrives_scaled import ARRIVES, KINDS, TARGET, arrive
from checkpoints_tools.load_any import load_model
from data_prep.stdlib_corpus import split
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.data import load_tokenizer
from megatron_longrope.evaluation import EvaluationDocument, PerplexityObjective, documents_sha256
from megatron_longrope.pipeline.margins import candidate_of
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import (
    extension_search,
    methods_compared,
    search_factors,
    search_objective,
)
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import single_runtime

runtime = pytest.fixture(single_runtime, scope="module")


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_below_all_it_is_compared_with(
    kind: str, runtime: Runtime, tmp_path: Path
) -> None:
    folder = arrive(kind, tmp_path / kind)
    loaded, tokenizer = load_model(folder, runtime), load_tokenizer(folder)
    assert loaded.own.window == ARRIVES
    texts = split()
    search, held_out = (
        [EvaluationDocument(text.name, tokenizer.encode_document(text.text)) for text in part[:2]]
        for part in (texts.search, texts.development)
    )
    config = SearchConfig.model_validate(
        {
            "num_documents": 2,
            "starts": ["yarn"],
            "searcher": {"name": "hybrid", "ramp": {"max_rounds": 2}, "cycles": 0},
        }
    )
    objective = search_objective(loaded.model, search, tokenizer, config, TARGET)
    factors, outcome = search_factors(
        extension_search(config, loaded.own, TARGET),
        objective,
        config,
        RunDirectory(tmp_path / "run"),
        documents_sha256(search),
    )
    assert len(outcome.entries) <= 15
    judge = PerplexityObjective(
        loaded.model, [document.prefix(TARGET) for document in held_out], target_length=TARGET
    )
    others = {
        method.name: candidate_of(method.factors_at(TARGET).for_length(TARGET))
        for method in methods_compared(loaded.own, TARGET)
    }
    assert list(others) == ["model", "second-pi", "second-ntk", "second-yarn"]
    ours, *theirs = judge([candidate_of(factors), *others.values()])
    assert all(ours.loss < other.loss for other in theirs)
