"""From files to tokens: readers, filters, BPE training, and the tokenizer as transformers sees
it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, LlamaConfig

from data_prep.bpe import END_OF_TEXT, train_bpe
from data_prep.documents import TextDocument, filter_documents, tokenize
from data_prep.readers import find_text_files, read_jsonl, read_text_files
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.errors import InputError

TEXT = "def area(width, height):\n    return width * height  # 12345 square metres\n" * 20
SAMPLE = "def f(x):\n    return x + 48213  # é 漢\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([TEXT], 280, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return load_tokenizer(folder)


@settings(deadline=None, max_examples=60)
@given(text=st.text())
def test_any_text_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone(tokenizer: TextTokenizer) -> None:
    entries = tokenizer.backend.get_vocab()
    assert tokenizer.vocab_size == len(entries) == 280
    assert all(
        len(entry) == 1 for entry in entries if any(character.isdigit() for character in entry)
    )


def test_training_twice_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    train_bpe([TEXT], 280, tmp_path)
    names = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)


@pytest.mark.parametrize("with_model_config", [False, True])
def test_transformers_gives_the_same_ids_and_no_bos(
    folder: Path, tmp_path: Path, with_model_config: bool
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if with_model_config:
        LlamaConfig(vocab_size=280).save_pretrained(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert theirs.encode(SAMPLE + END_OF_TEXT) == ours.encode(SAMPLE + END_OF_TEXT).tolist()
    assert theirs.eos_token_id == ours.eos_id == ours.encode(SAMPLE + END_OF_TEXT)[-1]
    assert len(theirs) == ours.vocab_size


@pytest.mark.parametrize(
    "says", ["template", "config true", "config false", "both, config false", "nothing"]
)
def test_special_tokens_are_those_of_transformers(folder: Path, tmp_path: Path, says: str) -> None:
    backend = load_tokenizer(folder).backend
    if says in ("template", "both, config false"):
        special = [(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))]
        backend.post_processor = processors.TemplateProcessing(
            f"{END_OF_TEXT} $A", special_tokens=special
        )
    backend.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["add_bos_token"], config["add_eos_token"]
    if "config" in says:
        config["add_bos_token"] = says == "config true"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert (
        ours.encode(SAMPLE).tolist()
        == theirs.encode(SAMPLE)
        == ours.encode_document(SAMPLE).tolist()
    )
    with_bos = ours.encode_document(SAMPLE, add_bos=True)
    assert with_bos.tolist() == [ours.bos_id, *theirs.encode(SAMPLE, add_special_tokens=False)]


def test_a_bos_nobody_named_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="no bos_token"):
        load_tokenizer(tmp_path / "tokenizer.json").encode_document("a", add_bos=True)


def test_broken_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("vocab_size", [257, 5000])
def test_a_vocabulary_that_cannot_be_filled_is_refused(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(InputError, match="vocab_size"):
        train_bpe([TEXT], vocab_size, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.rst").write_bytes("\ufeffGrüße\r\nzwei".encode())
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    assert [document.text for document in read_text_files([tmp_path / "a.rst"])] == ["Grüße\nzwei"]
    with pytest.raises(InputError, match="not UTF-8: byte 0xff at 3"):
        list(read_text_files([tmp_path / "b.txt"]))
    with pytest.raises(InputError, match="no such file"):
        list(read_text_files([tmp_path / "c.txt"]))


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "one\u2028same", "id": 7}\n\n{"text": "two"}\n', encoding="utf-8")
    assert list(read_jsonl(path)) == [
        TextDocument("7", "one\u2028same"),
        TextDocument("set.jsonl:3", "two"),
    ]


@pytest.mark.parametrize(
    "line",
    [b'{"txt": "a"}', b'{"text": 5}', b"[1]", b"{", b'{"text": "\xff"}', b'{"text": "\\ud800"}'],
)
def test_wrong_json_lines_name_their_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "set.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"set\.jsonl:2"):
        list(read_jsonl(tmp_path / "set.jsonl"))


def test_filters_report_what_they_leave_out(tokenizer: TextTokenizer) -> None:
    documents = [
        TextDocument("a", "x"),
        TextDocument("b", ""),
        TextDocument("c", "x"),
        TextDocument("d", "y"),
    ]
    kept, report = filter_documents(documents, drop_duplicates=True)
    assert (
        [d.name for d in kept] == ["a", "d"]
        and report.empty == ("b",)
        and report.duplicates == ("c",)
    )
    assert [d.name for d in filter_documents(documents)[0]] == ["a", "c", "d"]
    tokens = tokenize(kept, tokenizer, end_token=tokenizer.eos_id)
    np.testing.assert_array_equal(tokens[0].tokens, [*tokenizer.encode("x"), tokenizer.eos_id])


def test_files_folders_and_patterns_name_each_file_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.md", ".hidden/d.txt", ".e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")

    def found(*paths: str) -> list[str]:
        files = find_text_files([tmp_path / path for path in paths])
        return [str(Path(file).relative_to(tmp_path)) for file in files]

    assert found(".") == ["a.txt", "b.txt", "deep/c.md"]
    assert found("*.txt") == ["a.txt", "b.txt"]
    assert found("**/*.md") == ["deep/c.md"]
    assert found("b.txt", ".") == ["b.txt", "a.txt", "deep/c.md"]
    (tmp_path / "__init__.txt").touch()  # nobody asked for this one by name
    assert found("*.txt") == ["a.txt", "b.txt"] and "__init__.txt" not in found(".")
    assert found("__init__.txt") == ["__init__.txt"]
    (tmp_path / "empty").mkdir()
    for path in ("gone.txt", "*.pdf", "empty"):
        with pytest.raises(InputError, match="--text"):
            found(path)
