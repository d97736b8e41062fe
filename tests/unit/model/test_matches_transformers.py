"""Our model on megatron-core gives transformers' logits, losses and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_longrope.data import DocumentBatch
from megatron_longrope.errors import InputError
from megatron_longrope.model import document_logits, score_documents
from megatron_longrope.model.forward import run_stage
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import (
    VOCABULARY,
    WINDOW,
    our_model,
    random_documents,
    single_runtime,
    stage_tensors,
    tiny_hf_model,
)

runtime = pytest.fixture(single_runtime, scope="module")

_PAIRS = 8
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.01 * i for i in range(_PAIRS)],
        "long_factor": [1.0 + 0.4 * i for i in range(_PAIRS)],
        "original_max_position_embeddings": WINDOW,
        "attention_factor": 1.12,
    },
}


def rope_settings(kind: str) -> dict[str, Any]:
    longer = 4 * WINDOW if kind in ("yarn", "longrope") else WINDOW
    return {
        "rope_parameters": {"rope_theta": 10000.0, **ROPES[kind]},
        "max_position_embeddings": longer,
    }


def hf_logits(hf: Any, document: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return hf(torch.from_numpy(document)[None]).logits[0]


def assert_same_as_transformers(hf: Any, runtime: Runtime, documents: list[np.ndarray]) -> None:
    model = our_model(hf, runtime)
    scores = score_documents(model, documents)
    for document, score in zip(documents, scores, strict=True):
        expected = hf_logits(hf, document)
        np.testing.assert_allclose(document_logits(model, document), expected, atol=5e-5, rtol=0)
        labels = torch.from_numpy(document)[1:]
        losses = torch.nn.functional.cross_entropy(expected[:-1], labels, reduction="none")
        np.testing.assert_allclose(score.nll, losses, atol=2e-5, rtol=0)
        assert score.nll.dtype == np.float32 and len(score.nll) == len(document) - 1
        np.testing.assert_array_equal(score.correct, expected[:-1].argmax(-1) == labels)


@pytest.mark.parametrize("kind", ROPES)
def test_every_rope_type(kind: str, runtime: Runtime) -> None:
    hf = tiny_hf_model(**rope_settings(kind))
    assert_same_as_transformers(hf, runtime, random_documents(WINDOW, 3 * WINDOW, 17))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_grouped_heads_and_tied_embeddings(kv_heads: int, tied: bool, runtime: Runtime) -> None:
    hf = tiny_hf_model(num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    assert_same_as_transformers(hf, runtime, random_documents(50, 31))


@pytest.mark.parametrize("vocabulary", [128, 129])
def test_vocabulary_with_and_without_padding(vocabulary: int, runtime: Runtime) -> None:
    hf = tiny_hf_model(vocab_size=vocabulary)
    assert_same_as_transformers(hf, runtime, random_documents(40, vocabulary=vocabulary))
    assert document_logits(
        our_model(hf, runtime), random_documents(9, vocabulary=100)[0]
    ).shape == (9, vocabulary)


def test_heads_wider_than_the_hidden_size_allows(runtime: Runtime) -> None:
    assert_same_as_transformers(tiny_hf_model(head_dim=32), runtime, random_documents(40))


def test_packed_documents_score_as_they_do_alone(runtime: Runtime) -> None:
    model = our_model(tiny_hf_model(), runtime)
    documents = random_documents(5, 60, 60, 2, 33, 64)
    together = score_documents(model, documents)
    for document, score in zip(documents, together, strict=True):
        (alone,) = score_documents(model, [document])
        np.testing.assert_allclose(score.nll, alone.nll, atol=1e-5)
        np.testing.assert_array_equal(score.correct, alone.correct)


def test_loss_in_chunks_is_the_loss_at_once(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = our_model(tiny_hf_model(), runtime)
    batch = DocumentBatch.from_documents(random_documents(61, 40))
    losses, gradients = _losses_and_gradients(model, batch)
    monkeypatch.setattr(
        "megatron_longrope.model.layers.token_loss.chunked_token_losses.__kwdefaults__",
        {"chunk_tokens": 16},
    )
    chunked_losses, chunked_gradients = _losses_and_gradients(model, batch)
    torch.testing.assert_close(chunked_losses, losses, atol=1e-6, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(chunked_gradients[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_the_training_loss(tied: bool, runtime: Runtime) -> None:
    hf = tiny_hf_model(tie_word_embeddings=tied, **rope_settings("yarn"))
    documents = random_documents(70, 33)
    model = our_model(hf, runtime)
    _, gradients = _losses_and_gradients(model, DocumentBatch.from_documents(documents))
    total = torch.zeros(())
    for document in documents:
        tokens = torch.from_numpy(document)
        total = total + torch.nn.functional.cross_entropy(
            hf(tokens[None]).logits[0, :-1], tokens[1:], reduction="sum"
        )
    (total / (69 + 32)).backward()
    expected = stage_tensors(
        model, {name: parameter.grad for name, parameter in hf.named_parameters()}
    )
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-5, rtol=1e-4, msg=name)


def _losses_and_gradients(
    model: Any, batch: DocumentBatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.stage.zero_grad()
    assert model.stage.output_kind == "losses"
    losses = run_stage(model, model.stage, batch)
    (losses * batch.loss_mask).sum().div(batch.loss_mask.sum()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.stage.named_parameters()}
    return losses.detach(), gradients


def test_wrong_documents_are_refused(runtime: Runtime) -> None:
    model = our_model(tiny_hf_model(), runtime)
    with pytest.raises(InputError, match=r"documents\[1\].*at least 2 tokens"):
        score_documents(model, [np.arange(5), np.array([1])])
    with pytest.raises(InputError, match=f"token {VOCABULARY}.*wrong tokenizer"):
        score_documents(model, [np.array([1, VOCABULARY])])
