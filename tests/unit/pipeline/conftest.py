"""Fixtures of the pipeline's tests: this process as the whole run, and a small tokenizer."""

from __future__ import annotations

import pytest

from data_prep.bpe import train_bpe
from megatron_longrope.data import TextTokenizer
from tests.support.tiny_models import single_runtime

runtime = pytest.fixture(scope="module")(single_runtime)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    text = (
        "The pass key is 0123456789. Remember it. What is the pass key? alpha-7 = 4821\nalpha-7 ? "
        "4821\n" * 9
    )
    return train_bpe([text], 285, tmp_path_factory.mktemp("tokenizer"))
