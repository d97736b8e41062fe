"""Documents are kept apart."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data_prep.corpus_config import CorpusConfig
from data_prep.package_documents import (
    TEST_MODULES,
    missing_texts,
    other_texts,
    read_test_documents,
)
from data_prep.stdlib_corpus import DEVELOPMENT_MODULES, split
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.corpus import load_corpus
from megatron_longrope.presets import model_path


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


def test_a_recipe_says_which_documents_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = split()
    few = replace(parts, train=parts.train[:2])  # the rest would be tokenized for nothing
    monkeypatch.setattr("megatron_longrope.pipeline.corpus.split_standard_library", lambda: few)
    tokenizer = load_tokenizer(model_path("preset:demo"))
    tested = load_corpus(CorpusConfig(standard_library=True), tokenizer, 8193)
    developed = load_corpus(
        CorpusConfig(standard_library=True, judged_on="development"), tokenizer, 8193
    )
    assert [document.name for document in tested.held_out] == [each.path for each in TEST_MODULES]
    assert [document.name for document in developed.held_out] == list(DEVELOPMENT_MODULES)
    same, other = ({**corpus.identity(), "held_out": ""} for corpus in (tested, developed))
    assert same == other
    assert not developed.notes
    monkeypatch.setattr("megatron_longrope.pipeline.corpus.other_texts", lambda: ("a.py of a 2",))
    noted = load_corpus(CorpusConfig(standard_library=True), tokenizer, 8193)
    assert len(noted.notes) == 1 and noted.notes[0].endswith(": a.py of a 2")


def test_test_documents_that_a_machine_lacks_are_left_out_with_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = split()
    few = replace(parts, train=parts.train[:2], search=parts.search[:1])
    monkeypatch.setattr("megatron_longrope.pipeline.corpus.split_standard_library", lambda: few)
    gone = replace(TEST_MODULES[4], path="packaging/gone.py", version="25.0")
    first = replace(TEST_MODULES[0], version="1.0", sha256="0" * 64)
    modules = (first, *TEST_MODULES[1:4], gone)
    for name in (read_test_documents, missing_texts, other_texts):
        monkeypatch.setattr(
            f"megatron_longrope.pipeline.corpus.{name.__name__}", partial(name, modules)
        )
    config, tokenizer = (
        CorpusConfig(standard_library=True),
        load_tokenizer(model_path("preset:demo")),
    )
    corpus = load_corpus(config, tokenizer, 8193, 4)
    assert [each.name for each in corpus.held_out] == [each.path for each in modules[:4]]
    others, lacking = corpus.notes
    assert "recorded: 1.0" in others and "gone.py" not in others
    assert lacking.endswith("are left out: packaging/gone.py of packaging 25.0")
    with pytest.raises(InputError, match=r"gone\.py.*has no such module"):
        load_corpus(config, tokenizer, 8193, 5)


def test_documents_of_ones_own_are_not_development_documents() -> None:
    with pytest.raises(ValueError, match=r"judged_on: development is for standard_library"):
        CorpusConfig(documents=("a.txt",), judged_on="development")
