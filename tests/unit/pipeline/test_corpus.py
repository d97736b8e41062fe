"""Documents are kept apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrope.data import TextTokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.corpus import load_corpus
from megatron_longrope.pipeline.recipe import (
    CorpusConfig,
)


def test_one_list_of_documents_is_divided_without_overlap(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    for number in range(7):
        words = 300 if number % 2 else 30
        (tmp_path / f"{number}.txt").write_text(f"{number} " + "grass key 7 " * words)
    paths = tuple(str(tmp_path / f"{number}.txt") for number in range(7))
    corpus = load_corpus(
        CorpusConfig(documents=paths, num_search=2, num_evaluation=1), tokenizer, 400
    )
    names = [
        [Path(d.name).stem for d in part] for part in (corpus.search, corpus.held_out, corpus.train)
    ]
    assert names == [["1", "3"], ["5"], ["0", "2", "4", "6"]]
    with pytest.raises(InputError, match=r"3 of 7.*4 are needed"):
        load_corpus(CorpusConfig(documents=paths, num_search=3, num_evaluation=1), tokenizer, 400)
