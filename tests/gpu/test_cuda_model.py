"""On a CUDA device: the same model, the same losses, in float32 against transformers and in
bfloat16 near it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_longrope.model import document_logits, score_documents
from megatron_longrope.runtime import start_runtime
from tests.support.tiny_models import our_model, random_documents, tiny_hf_model

pytestmark = pytest.mark.gpu


def test_logits_on_cuda_equal_transformers_on_the_cpu() -> None:
    theirs = tiny_hf_model()
    (document,) = random_documents(60)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(document)[None]).logits[0].numpy()
    with start_runtime() as runtime:
        assert runtime.device.type == "cuda"
        assert np.abs(document_logits(our_model(theirs, runtime), document) - expected).max() < 1e-3


def test_bfloat16_scores_stay_near_float32() -> None:
    documents = random_documents(64, 64, 37)
    with start_runtime() as runtime:
        exact, rough = (
            score_documents(our_model(tiny_hf_model(), runtime, dtype=dtype), documents)
            for dtype in (torch.float32, torch.bfloat16)
        )
    for a, b in zip(exact, rough, strict=True):
        assert abs(a.nll.mean() - b.nll.mean()) < 0.05
