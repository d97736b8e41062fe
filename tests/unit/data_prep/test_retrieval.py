"""Documents with a known answer: exact length, exact place, and the answer readable from the
statement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_prep.bpe import train_bpe
from data_prep.retrieval import RetrievalMix, retrieval_documents
from megatron_longrope.data import (
    TextTokenizer,
    classic_filler,
    key_value_document,
    load_tokenizer,
    passkey_document,
    text_filler,
)
from megatron_longrope.data.passkey import CLASSIC_SENTENCES
from megatron_longrope.errors import InputError

TEXT = (
    "The pass key is 10. Remember it. What is the pass key? The grass is green. alpha-7 = "
    "4821\nalpha-7 ? 4821\n" * 9
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return train_bpe([TEXT], 290, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def merging() -> Tokenizer:
    """A tokenizer unlike ours: digits merge with each other and with the space before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    text = TEXT + " ".join(str(n) for n in range(10000, 100000, 37))
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet)
    )
    return tokenizer


@pytest.fixture(scope="module")
def sentencepiece_like() -> Tokenizer:
    """As LLaMA's: spaces become ▁ and every text gets one in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    text = TEXT + "0123456789\n"
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"])
    )
    return tokenizer


@settings(deadline=None, max_examples=60)
@given(length=st.integers(150, 3000), depth=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_pass_keys_are_exact_and_legible(
    tokenizer: TextTokenizer, length: int, depth: float, seed: int
) -> None:
    document = passkey_document(tokenizer, length, depth, seed)
    assert len(document.tokens) == length == document.answer_start + document.answer_length
    text = tokenizer.decode(document.tokens)
    assert (
        text.count(
            f"The pass key is {document.key}. Remember it. {document.key} is the pass key.\n"
        )
        == 1
    )
    assert text.endswith(f"\nWhat is the pass key? The pass key is {document.key}")
    assert (
        tokenizer.decode(document.answer) == document.key
        and len(document.key) == document.answer_length == 5
    )
    assert np.array_equal(document.tokens, passkey_document(tokenizer, length, depth, seed).tokens)
    windows = np.lib.stride_tricks.sliding_window_view(document.tokens[: document.answer_start], 5)
    assert (windows == document.answer).all(axis=1).sum() == 2


@pytest.mark.parametrize("depth", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_depth_is_where_the_statement_stands(tokenizer: TextTokenizer, depth: float) -> None:
    for seed in range(5):
        text = tokenizer.decode(passkey_document(tokenizer, 4000, depth, seed).tokens)
        filler, question = text.index("The pass key is"), text.index("\nWhat is")
        before = filler / (
            question - len("The pass key is 12345. Remember it. 12345 is the pass key.\n")
        )
        assert depth - 0.02 <= before <= depth + 0.005  # depth counts tokens, this characters
        assert depth in (0.0, 1.0) or text[filler - 1] == " "


@pytest.mark.parametrize("name", ["merging", "sentencepiece_like"])
def test_other_tokenizers(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    for seed in range(20):
        document = passkey_document(tokenizer, 300, 0.4, seed)
        assert len(document.tokens) == 300
        assert tokenizer.decode(document.answer.tolist()).strip() == document.key
        assert tokenizer.decode(document.tokens.tolist()).endswith(
            f"The pass key is {document.key}"
        )


def test_the_prefix_comes_first_and_counts(tokenizer: TextTokenizer) -> None:
    plain, prefixed = (
        passkey_document(tokenizer, 200, 0.5, 3, prefix=prefix) for prefix in ((), (0,))
    )
    assert prefixed.tokens[0] == 0 and len(prefixed.tokens) == 200 and prefixed.key == plain.key


def test_other_filler_is_cut_by_the_token_and_goes_round(tokenizer: TextTokenizer) -> None:
    filler = text_filler(tokenizer, ["import os\n", "", "x = 1\n"])
    document = passkey_document(tokenizer, 400, 0.5, 1, filler)
    text = tokenizer.decode(document.tokens)
    assert "import os\nx = 1\nimport os\nx = 1\n" in text and "\nThe pass key is" in text
    assert "grass" not in text and filler.num_sentences == 2


def test_classic_filler_is_the_sentences(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode(classic_filler(tokenizer).tokens) == "".join(CLASSIC_SENTENCES)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(200, 2000), seed=st.integers(0, 2**40), questions=st.integers(1, 4))
def test_key_value_lists_can_be_answered(
    tokenizer: TextTokenizer, length: int, seed: int, questions: int
) -> None:
    document = key_value_document(tokenizer, length, seed, questions)
    assert len(document.tokens) == length
    lines = tokenizer.decode(document.tokens).splitlines()
    pairs = [line.split(" = ") for line in lines[1:-questions]]
    values = dict(pairs)
    assert len(values) == len(pairs)
    for line in lines[-questions:]:
        name, value = line.split(" ? ")
        assert values[name] == value
    assert tokenizer.decode(document.answer) == document.key == lines[-1].split(" ? ")[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda t: passkey_document(t, 20, 0.5, 1),
        lambda t: passkey_document(t, 200, 1.5, 1),
        lambda t: passkey_document(t, 200, 0.5, 1, key_digits=0),
        lambda t: key_value_document(t, 10, 1),
        lambda t: key_value_document(t, 100, 1, num_questions=0),
        lambda t: text_filler(t, [""]),
        lambda t: retrieval_documents(t, 1, 50, 40, 1),
        lambda t: retrieval_documents(t, 1, 100, 100, 1, mix=RetrievalMix(key_value_share=2.0)),
        lambda t: retrieval_documents(t, 1, 100, 100, 1, mix=RetrievalMix(longest_key=4)),
    ],
)
def test_what_cannot_be_built_is_refused(
    tokenizer: TextTokenizer, make: Callable[[TextTokenizer], object]
) -> None:
    with pytest.raises(InputError):
        make(tokenizer)


def test_training_documents(tokenizer: TextTokenizer) -> None:
    documents = retrieval_documents(tokenizer, 60, 100, 256, seed=4)
    assert all(100 <= len(document.tokens) <= 256 for document in documents)
    assert all(document.tokens[-1] == tokenizer.eos_id for document in documents)
    kinds = {document.name.split("-")[0] for document in documents}
    assert kinds == {"key", "passkey"} and len({document.sha256 for document in documents}) == 60
    again = retrieval_documents(tokenizer, 10, 100, 256, seed=4)
    assert [document.sha256 for document in again] == [
        document.sha256 for document in documents[:10]
    ]


def test_keys_are_as_long_as_allowed(tokenizer: TextTokenizer) -> None:
    documents = retrieval_documents(
        tokenizer, 60, 150, 256, 4, mix=RetrievalMix(0.0, longest_key=8)
    )
    keys = [
        tokenizer.decode(document.tokens[:-1]).split("The pass key is ")[-1]
        for document in documents
    ]
    assert {len(key) for key in keys} == {5, 6, 7, 8} and all(key.isdigit() for key in keys)


def test_the_saved_tokenizer_builds_the_same_document(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    for other in (loaded, loaded.backend):
        same = passkey_document(other, 300, 0.3, 8).tokens
        assert np.array_equal(same, passkey_document(tokenizer, 300, 0.3, 8).tokens)


def test_copies_say_one_passage_again(tokenizer: TextTokenizer) -> None:
    documents = retrieval_documents(
        tokenizer, 20, 64, 128, 5, mix=RetrievalMix(key_value_share=0, copy_share=1)
    )
    for document in documents:
        tokens = document.tokens[:-1]  # the end token
        periods = [
            n for n in range(4, len(tokens) // 2 + 1) if np.array_equal(tokens[n:], tokens[:-n])
        ]
        assert document.name.startswith("copy-") and periods
