"""`longrope eval`: rows in the file, tables on the screen, wrong input in one line."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.bpe import train_bpe
from data_prep.documents import TokenDocument
from data_prep.writing import write_documents, write_packed
from launchers.main import main
from megatron_longrope.rope import PositionInterpolation, RopeGeometry, write_factors
from tests.support.tiny_models import WINDOW, tiny_hf_model

ENTRIES = 290
TEXT = (
    "What is the pass key? The pass key is 12345. Remember it. The grass is green. The sky is "
    "blue.\n" * 20
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tiny model and its tokenizer, and a text beside it."""
    root: Path = tmp_path_factory.mktemp("hf")
    tiny_hf_model(vocab_size=ENTRIES).save_pretrained(root / "tiny")
    train_bpe([TEXT], ENTRIES, root / "tiny")
    (root / "text.txt").write_text(TEXT)
    return root


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *map(str, args)])
    return int(ended.value.code or 0)


def hf_loss_sum(folder: Path, length: int, bos: bool = False) -> float:
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    ids = torch.tensor(([0] if bos else []) + tokenizer(TEXT)["input_ids"])[:length]
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(folder / "tiny", dtype=torch.float32)(
            ids[None]
        ).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))


@pytest.mark.parametrize("bos", [False, True])
def test_ppl_writes_the_sums_of_transformers(
    bos: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "ppl.json"
    code = run(
        "ppl",
        "--model",
        folder / "tiny",
        "--text",
        folder / "text.txt",
        "--lengths",
        f"{WINDOW},100",
        "--method",
        "none",
        "--angle-precision",
        "hf",
        "--json",
        out,
        *(["--add-bos"] if bos else []),
    )
    assert code == 0
    content = json.loads(out.read_text())
    assert [row["length"] for row in content["rows"]] == [WINDOW, 100]
    for row in content["rows"]:
        assert row["document"] == str(folder / "text.txt")
        assert (row["model"], row["method"], row["protocol"]) == ("tiny", "none", "first-token")
        assert row["tokens"] == row["length"] - 1
        assert row["nll_sum"] == pytest.approx(hf_loss_sum(folder, row["length"], bos), rel=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(row["nll_sum"] / row["tokens"]))
    assert sum(bucket["tokens"] for bucket in content["positions"]) == WINDOW - 1 + 99
    shown = capsys.readouterr()
    assert f"{content['rows'][1]['perplexity']:.4f}" in shown.out
    assert "100 %  none at 100 tokens" in shown.err


def test_methods_scale_by_target_or_length_and_files_are_read(folder: Path) -> None:
    geometry = RopeGeometry(base=10000.0, head_dim=16, original_length=WINDOW)
    write_factors(folder / "pi2.json", PositionInterpolation(scale=2).factors(geometry))
    out = folder / "methods.json"
    request = [
        "ppl",
        "--model",
        folder / "tiny",
        "--text",
        folder / "text.txt",
        "--lengths",
        2 * WINDOW,
        "--json",
        out,
    ]
    methods = [
        "pi",
        "pi:2",
        "pi:4",
        folder / "pi2.json",
        "none",
        "model",
        "yarn",
        "ntk",
        "dynamic-ntk:2",
    ]
    assert run(*request, *(part for method in methods for part in ("--method", method))) == 0
    sums = {row["method"]: row["nll_sum"] for row in json.loads(out.read_text())["rows"]}
    assert list(sums) == [str(method) for method in methods]
    assert sums["pi"] == sums["pi:2"] == sums[str(folder / "pi2.json")] != sums["pi:4"]
    assert sums["none"] == sums["model"] and len(set(sums.values())) == 6
    assert run(*request, "--method", "pi", "--target", 4 * WINDOW) == 0
    assert json.loads(out.read_text())["rows"][0]["nll_sum"] == sums["pi:4"]
    assert run(*request, "--method", "pi", "--original-window", WINDOW // 2) == 0
    assert json.loads(out.read_text())["rows"][0]["nll_sum"] == sums["pi:4"]


def test_tables_without_a_terminal_are_whole_and_tab_separated_on_demand(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [20, 30, 40, 50, 60, 64, 70, 80, 90, 100]
    request = ["ppl", "--model", folder / "tiny", "--text", folder / "text.txt", "--lengths"]
    out = folder / "wide.json"
    assert run(*request, ",".join(map(str, lengths)), "--json", out) == 0
    shown, rows = capsys.readouterr().out, json.loads(out.read_text())["rows"]
    (line,) = (line for line in shown.splitlines() if line.count("(") == len(lengths))
    assert all(f"{row['perplexity']:.4f} (" in line for row in rows)  # far beyond 80 columns
    assert run(*request, "40,50", "--tsv", "-") == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines(), dialect="excel-tab"))
    assert [(row["method"], row["length"]) for row in table] == [("model", "40"), ("model", "50")]
    wanted = {row["length"]: row["perplexity"] for row in rows}
    assert [float(row["perplexity"]) for row in table] == [wanted[40], wanted[50]]


def test_ppl_reads_datasets_of_whole_documents(folder: Path, tmp_path: Path) -> None:
    from megatron_longrope.data import load_tokenizer

    tokenizer = load_tokenizer(folder / "tiny")
    documents = [TokenDocument.generated(name, tokenizer.encode(TEXT)) for name in ("a", "b")]
    write_documents(tmp_path / "whole", documents, tokenizer.identity, tokenizer.vocab_size)
    out = tmp_path / "ppl.json"
    request = [
        "ppl",
        "--model",
        folder / "tiny",
        "--lengths",
        50,
        "--method",
        "none",
        "--sliding",
        "32:8",
    ]
    assert run(*request, "--data", tmp_path / "whole", "--json", out) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["document"], row["protocol"], row["window"], row["stride"]) for row in rows] == [
        ("a", "sliding", 32, 8),
        ("b", "sliding", 32, 8),
    ]
    assert rows[0]["nll_sum"] == rows[1]["nll_sum"]
    write_packed(tmp_path / "packed", documents, 64, tokenizer.identity, tokenizer.vocab_size)
    assert run(*request, "--data", tmp_path / "packed") == 2


def test_passkey_writes_a_row_per_length_and_depth(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "passkey.json"
    code = run(
        "passkey",
        "--model",
        folder / "tiny",
        "--lengths",
        "200,300",
        "--depths",
        "0,1",
        "--trials",
        2,
        "--method",
        "none",
        "--method",
        "pi",
        "--json",
        out,
    )
    assert code == 0
    rows = json.loads(out.read_text())["rows"]
    expected = [
        (method, length, depth)
        for method in ("none", "pi")
        for length in (200, 300)
        for depth in (0, 1)
    ]
    assert [(row["method"], row["length"], row["depth"]) for row in rows] == expected
    assert all(row["trials"] == 2 and row["accuracy"] == row["correct"] / 2 for row in rows)
    assert "exact match" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--lengths", "2k"], "fewer than the length 2k"),
        (["--lengths", "1"], "at least 2 tokens"),
        (["--lengths", "0"], "--lengths=0"),
        (["--sliding", "32"], "--sliding=32: is written WINDOW:STRIDE"),
        (["--sliding", "32:32"], "sliding=32:32"),
        (["--method", "yarm"], "--method=yarm"),
        (["--method", "dynamic-ntk"], "dynamic-ntk:2"),
        (["--method", "pi", "--method", "pi"], "given twice"),
        (["--data", "nowhere"], "either --text or --data"),
        (["--text", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--json", "no/such/folder/out.json"], "its folder does not exist"),
        (["--tensor-parallel", "2"], "tensor_parallel"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    extra: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = {"--model": folder / "tiny", "--text": folder / "text.txt", "--lengths": 50}
    given = [
        part for name, value in defaults.items() if name not in extra for part in (name, value)
    ]
    assert run("ppl", *given, *extra) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines


@pytest.mark.parametrize("depths", ["0,2", "half", "0.5,0.5", ""])
def test_wrong_depths_are_refused(depths: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("passkey", "--model", "x", "--lengths", "200", "--depths", depths) == 2
    assert "--depths" in capsys.readouterr().err


def test_lengths_below_what_a_key_needs_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("passkey", "--model", folder / "tiny", "--lengths", "20") == 2
    assert "too short for a passkey" in capsys.readouterr().err


def test_a_model_without_tokenizer_cannot_encode_text(folder: Path, tmp_path: Path) -> None:
    tiny_hf_model(vocab_size=ENTRIES).save_pretrained(tmp_path / "bare")
    assert (
        run("ppl", "--model", tmp_path / "bare", "--text", folder / "text.txt", "--lengths", 50)
        == 2
    )
    assert np.all([not path.name.startswith("tokenizer") for path in (tmp_path / "bare").iterdir()])
