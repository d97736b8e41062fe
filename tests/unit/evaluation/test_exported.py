"""An exported folder read by transformers: its losses and answers are those of a direct call."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron_longrope.data import PasskeyDocument
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import answers_retrieved, token_losses
from megatron_longrope.evaluation.exported import load_exported
from megatron_longrope.evaluation.tasks import TaskInputs
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import (
    WINDOW,
    our_model,
    random_documents,
    single_runtime,
    tiny_hf_model,
)

runtime = pytest.fixture(single_runtime, scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported") / "hf"
    tiny_hf_model().save_pretrained(place)
    return place


def test_losses_are_those_of_whole_logits_and_of_our_model(folder: Path, runtime: Runtime) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    documents = random_documents(2, WINDOW, 1500)  # one over a chunk of logits
    found = load_exported(folder, runtime, torch.float32).token_losses(documents)
    for tokens, losses in zip(documents, found, strict=True):
        ids = torch.as_tensor(np.asarray(tokens))
        with torch.no_grad():
            logits = theirs(ids[None]).logits[0]
        expected = cross_entropy(logits[:-1].double(), ids[1:], reduction="none").numpy()
        np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)
    ours = token_losses(our_model(theirs, runtime), documents[:2])
    np.testing.assert_allclose(found[1], ours[1], atol=1e-4, rtol=0)


def test_an_answer_is_what_greedy_generation_gives(
    folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    documents = []
    for prompt in random_documents(20, 33):
        tokens = list(map(int, prompt))
        for _ in range(3):  # without a cache of keys and values
            with torch.no_grad():
                tokens.append(int(theirs(torch.tensor([tokens])).logits[0, -1].argmax()))
        documents.append(PasskeyDocument(np.array(tokens), len(prompt), 3, ""))
        wrong = [*tokens[:-1], (tokens[-1] + 1) % 100]
        documents.append(PasskeyDocument(np.array(wrong), len(prompt), 3, ""))
    exported = load_exported(folder, runtime, torch.float32)
    assert answers_retrieved(exported, documents).tolist() == [True, False, True, False]
    penalized = shutil.copytree(folder, tmp_path / "penalized")
    (penalized / "generation_config.json").write_text('{"repetition_penalty": 50.0}')
    exported = load_exported(penalized, runtime, torch.float32)
    assert answers_retrieved(exported, documents).tolist() == [True, False, True, False]
    ours = answers_retrieved(our_model(theirs, runtime), documents)
    assert ours.tolist() == [True, False, True, False]


def test_a_folder_that_transformers_does_not_load_is_one_line(
    tmp_path: Path, runtime: Runtime
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(InputError, match="does not load it") as refused:
        load_exported(tmp_path, runtime, torch.float32)
    assert "\n" not in str(refused.value)


def test_tasks_that_want_our_model_refuse_an_export(folder: Path, runtime: Runtime) -> None:
    exported = load_exported(folder, runtime, torch.float32)
    with pytest.raises(InputError, match="does not measure exports"):
        _ = TaskInputs(exported, None).model
