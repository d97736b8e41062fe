"""Generated documents begin as the tokenizer begins documents, wherever they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from data_prep.retrieval import RetrievalMix, retrieval_documents
from megatron_longrope.data import PasskeyDocument, TextTokenizer
from megatron_longrope.evaluation import EvaluationDocument
from megatron_longrope.pipeline.evaluating import Evaluator, Measurements
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import search_objective
from megatron_longrope.runtime import Runtime
from tests.support.factor_sets import UNSCALED
from tests.support.tiny_models import our_model, tiny_hf_model


@pytest.fixture(scope="module", params=["adds a BOS", "adds none"])
def case(request: pytest.FixtureRequest, tokenizer: TextTokenizer) -> tuple[TextTokenizer, bool]:
    """A tokenizer that names a BOS, and whether it puts one before documents."""
    adds = request.param == "adds a BOS"
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    if adds:
        begin = backend.id_to_token(0)
        backend.post_processor = TemplateProcessing(
            single=[begin, "$A"], special_tokens=[(begin, 0)]
        )
    return replace(tokenizer, backend=backend, bos_id=0), adds


def _begins(tokens: np.ndarray) -> bool:
    assert 0 not in tokens[1:-1]  # a trained-on document may end with it: it is the end token too
    return bool(tokens[0] == 0)


def test_the_tokenizer_decides(case: tuple[TextTokenizer, bool]) -> None:
    tokenizer, adds = case
    assert tokenizer.document_prefix() == ((0,) if adds else ())
    assert tokenizer.document_prefix(add_bos=True) == (0,)


def test_documents_to_train_on(case: tuple[TextTokenizer, bool]) -> None:
    tokenizer, adds = case
    documents = retrieval_documents(
        tokenizer, 12, 100, 256, 1, mix=RetrievalMix(key_value_share=0.3, copy_share=0.3)
    )
    assert {document.name.split("-")[0] for document in documents} == {"key", "passkey", "copy"}
    assert all(100 <= len(document.tokens) <= 256 for document in documents)
    for document in documents:
        if not document.name.startswith("copy"):  # whose passages are of random tokens
            assert _begins(document.tokens) == adds
        assert (document.tokens[0] == 0) == adds


def test_documents_of_a_search(case: tuple[TextTokenizer, bool], runtime: Runtime) -> None:
    tokenizer, adds = case
    model = our_model(tiny_hf_model(vocab_size=285), runtime)
    text = EvaluationDocument("a", np.arange(300, dtype=np.int64) % 280)
    config = SearchConfig(num_documents=1, retrieval_documents=2)
    keys = search_objective(model, [text], tokenizer, config, 256).parts[-1].documents
    assert [_begins(key) for key in keys] == [adds, adds]


def test_passkeys_of_a_run(
    case: tuple[TextTokenizer, bool], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, adds = case
    seen: list[PasskeyDocument] = []

    def found(model: Any, documents: Sequence[PasskeyDocument], batch: int) -> np.ndarray:
        seen.extend(documents)
        return np.ones(len(documents), dtype=bool)

    monkeypatch.setattr("megatron_longrope.evaluation.answers.answers_retrieved", found)
    config = EvaluationConfig.model_validate(
        {"lengths": [256], "tasks": {"passkey": {"trials": 1, "depths": [0.5]}}}
    )
    model = our_model(tiny_hf_model(vocab_size=285), runtime)
    rows = Measurements()
    evaluator = Evaluator(model, UNSCALED, "base", [], tokenizer, config, rows)
    evaluator.tasks("none", model.factor_set)
    assert [_begins(document.tokens) for document in seen] == [adds]
