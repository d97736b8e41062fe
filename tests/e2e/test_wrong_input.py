"""What a person gets wrong: one clear line, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope.config import write_yaml
from tests.support.tiny_run import make_model, make_texts, recipe_values

pytestmark = pytest.mark.timeout(180)
Change = Callable[[dict[str, Any], Path], None]


def _no_config(values: dict[str, Any], model: Path) -> None:
    (model / "config.json").unlink()


def _other_architecture(values: dict[str, Any], model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))


def _misspelt_key(values: dict[str, Any], model: Path) -> None:
    values["extension"][0]["fine_tune"]["training"]["learnin_rate"] = 1e-3


def _target_below_the_window(values: dict[str, Any], model: Path) -> None:
    values["extension"][0]["length"] = 64


def _documents_too_short(values: dict[str, Any], model: Path) -> None:
    values["extension"][1]["length"] = "64k"


def _damaged_weights(values: dict[str, Any], model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_no_config, "without config"),
        (_other_architecture, "gpt_neox"),
        (_misspelt_key, "learnin_rate"),
        (_target_below_the_window, "must exceed the model's window"),
        (_documents_too_short, "64k"),
        (_damaged_weights, "model.safetensors"),
    ],
)
def test_one_line_and_exit_code_2(change: Change, says: str, tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    model = make_model(tmp_path / "model", texts)
    values = recipe_values(model, texts)
    change(values, model)
    write_yaml(values, tmp_path / "recipe.yaml")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "launchers.main",
        "extend",
        str(tmp_path / "recipe.yaml"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [line for line in ended.stderr.splitlines() if line and not line.startswith("[")]
    assert ended.returncode == 2, ended.stderr
    assert len(lines) == 1 and says in lines[0], ended.stderr
    assert "Traceback" not in ended.stderr
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
