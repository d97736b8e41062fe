"""`longrope data`: what it writes can be read, and wrong input is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from launchers.main import main
from megatron_longrope.data import PackedDataset, load_tokenizer

TEXTS = {
    "a.txt": "one two three 123\n" * 30,
    "b.py": "def f():\n    return 1\n" * 10,
    "empty.md": "",
}


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, args)])


@pytest.fixture()
def files(tmp_path: Path) -> list[Path]:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    assert (
        run(
            "tokenizer",
            "--text",
            tmp_path / "a.txt",
            "--vocab-size",
            262,
            "--out",
            tmp_path / "tok",
        ).exit_code
        == 0
    )
    return [tmp_path / name for name in TEXTS]


def test_pack_and_inspect(files: list[Path], tmp_path: Path) -> None:
    args = (
        "--tokenizer",
        tmp_path / "tok",
        "--out",
        tmp_path / "set",
        "--json",
        tmp_path / "result.json",
    )
    packed = run("pack", "--text", *files, *args, "--sequence-length", 64)
    assert packed.exit_code == 0, packed.output
    assert "1 empty documents" in packed.output
    result = json.loads((tmp_path / "result.json").read_text())
    dataset = PackedDataset(tmp_path / "set")
    assert result["counts"]["rows"] == dataset.num_rows and result["filtered"]["empty"] == [
        str(files[2])
    ]
    inspected = run("inspect", tmp_path / "set", "--verify", "--json", tmp_path / "inspect.json")
    assert inspected.exit_code == 0 and "checksums   equal" in inspected.output
    assert json.loads((tmp_path / "inspect.json").read_text())["verified"] is True


def test_whole_documents_with_bos_and_eos(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps({"body": "three"}) + "\n")
    sources = (
        "--text",
        files[0],
        files[1],
        "--jsonl",
        tmp_path / "more.jsonl",
        "--text-field",
        "body",
    )
    args = ("--tokenizer", tmp_path / "tok", "--out", tmp_path / "set", "--add-bos", "--append-eos")
    assert run("pack", *sources, *args, "--whole-documents").exit_code == 0
    dataset, tokenizer = PackedDataset(tmp_path / "set"), load_tokenizer(tmp_path / "tok")
    assert dataset.document_names == [str(files[0]), str(files[1]), "more.jsonl:1"]
    expected = [tokenizer.bos_id, *tokenizer.encode("three"), tokenizer.eos_id]
    np.testing.assert_array_equal(dataset.document(2), expected)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ("pack --text a.txt --tokenizer tok --out set", "--sequence-length"),
        (
            "pack --text a.txt --tokenizer tok --out set --whole-documents --sequence-length 64",
            "--sequence-length",
        ),
        (
            "pack --text a.txt --tokenizer tok --out set --whole-documents --min-piece 4",
            "--min-piece",
        ),
        (
            "pack --text a.txt --tokenizer tok --out set --sequence-length 64 --min-piece 65",
            "min_piece",
        ),
        ("pack --text a.txt --tokenizer tok --out set --sequence-length 6x", "--sequence-length"),
        ("pack --tokenizer tok --out set --sequence-length 64", "--text"),
        ("pack --text no.txt --tokenizer tok --out set --sequence-length 64", "no.txt"),
        ("pack --text a.txt --tokenizer . --out set --sequence-length 64", "tokenizer"),
        ("pack --text empty.md --tokenizer tok --out set --sequence-length 64", "documents"),
        ("tokenizer --text a.txt --vocab-size 4000 --out tok2", "vocab_size"),
        ("inspect nothing", "nothing.json"),
    ],
)
def test_wrong_input_is_one_line(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: str, field: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args.split())
    assert result.exit_code == 2, result.output
    assert field in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "set.json").exists()
