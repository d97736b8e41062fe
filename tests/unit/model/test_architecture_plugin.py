"""A family from outside the package: registered through the registry alone, then converted through
the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from checkpoints_tools.hf.folder import bits_equal, open_hf_folder
from launchers.main import main
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.model.architectures import (
    ARCHITECTURES,
    family_of_megatron_flags,
    megatron_flags,
)
from megatron_longrope.model.architectures.llama import Llama
from megatron_longrope.model.architectures.settings import Config
from megatron_longrope.model.architectures.weights import WeightRule, plain
from megatron_longrope.model.checkpoints.checkpoint import read_description
from tests.support.formats.hf_folders import SHAPE, random_hf_folder, random_weights

NAME = "guanaco"


class Guanaco(Llama):
    """Llama with another epsilon, one weight under another name, and an argument of its own."""

    model_type = NAME
    hf_class = "GuanacoForCausalLM"
    norm_epsilon = 3e-6
    weights: ClassVar[tuple[WeightRule, ...]] = (
        *Llama.weights[:-2],
        plain("decoder.final_layernorm.weight", "model.last_norm.weight", "hidden"),
        Llama.weights[-1],
    )
    megatron_flags = frozenset({"guanaco"})
    gguf_architecture = None

    def serving_notes(self, config: Config) -> list[str]:
        """Returns a note that the export prints."""
        return [f"no engine runs a {NAME} yet"]


@pytest.fixture
def guanaco() -> Iterator[None]:
    ARCHITECTURES.register(NAME, Guanaco())
    try:
        yield
    finally:
        ARCHITECTURES.remove(NAME)


def convert(*words: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, words)])


def guanaco_folder(folder: Path) -> Path:
    """Writes a Llama's folder and turns it into one of the new family."""
    random_hf_folder(folder, dtype=torch.bfloat16, model_type=NAME, rms_norm_eps=None)
    weights = random_weights(SHAPE, torch.bfloat16)
    weights["model.last_norm.weight"] = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_family_from_outside_is_converted_and_verified(tmp_path: Path, guanaco: None) -> None:
    source = guanaco_folder(tmp_path / "hf")
    assert convert("import", source, tmp_path / "m").exit_code == 0
    description = read_description(tmp_path / "m")
    assert description.shape.architecture == NAME
    assert description.shape.norm_epsilon == 3e-6
    assert (
        description.shape.num_parameters
        == SHAPE.model_copy(update={"architecture": NAME}).num_parameters
    )
    exported = convert("export", tmp_path / "m", tmp_path / "back")
    assert exported.exit_code == 0 and "note: no engine runs a guanaco yet" in exported.output
    same = convert("verify", source, tmp_path / "back", "--logits")
    assert same.exit_code == 0 and "equal" in same.output
    before, after = open_hf_folder(source), open_hf_folder(tmp_path / "back")
    assert before.config == after.config and "model.last_norm.weight" in after.files
    assert before.files.keys() == after.files.keys()
    assert all(bits_equal(before.tensor(name), after.tensor(name)) for name in before.files)
    refused = convert("export", tmp_path / "m", tmp_path / "m.gguf", "--serve", "gguf")
    assert refused.exit_code == 2 and f"model_type={NAME}" in refused.output


def test_its_megatron_lm_arguments_are_asked_for(guanaco: None) -> None:
    assert "guanaco" in megatron_flags()
    family = family_of_megatron_flags(["guanaco"])
    assert family is not None and family.model_type == NAME
    assert family_of_megatron_flags(["guanaco", "add_qkv_bias"]) is None


def test_without_it_the_name_is_refused_in_one_line(tmp_path: Path) -> None:
    refused = convert("import", guanaco_folder(tmp_path / "hf"), tmp_path / "m")
    assert refused.exit_code == 2
    assert f"model_type={NAME}: one of {', '.join(ARCHITECTURES)}" in str(
        refused.output + str(refused.exception)
    )
    with pytest.raises(InputError, match=f"architecture={NAME}: one of llama, ") as caught:
        build_config(ModelShape, SHAPE.model_dump() | {"architecture": NAME}, "a description")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "llama"),
        (["window_size"], "mistral"),
        (["add_qkv_bias"], "qwen2"),
        (["add_qkv_bias", "window_size"], "qwen2"),
        (["qk_layernorm"], "qwen3"),
        (["no_rope_freq", "window_size"], "smollm3"),
    ],
)
def test_what_megatron_lm_arguments_mean(flags: list[str], name: str) -> None:
    family = family_of_megatron_flags(flags)
    assert family is not None and family.model_type == name


def test_no_two_families_claim_the_same_arguments() -> None:
    claimed = [
        family.megatron_flags
        for family in ARCHITECTURES.values()
        if family.megatron_flags is not None
    ]
    assert len(claimed) == len(set(claimed))


def test_windows_of_a_family_without_any_are_refused() -> None:
    windows = {"attention_windows": (5, None)}
    with pytest.raises(InputError, match="attention_windows"):
        SHAPE.model_copy(update=windows).to_hf()


def test_the_documented_family_is_the_one_in_the_package() -> None:
    root = Path(__file__).resolve().parents[3]
    section = (root / "docs" / "extending.md").read_text(encoding="utf-8")
    section = section[section.index("## A model family") :]
    shown = section.split("```python\n")[1].split("```")[0]
    family = root / "megatron_longrope" / "model" / "architectures" / "seed_oss.py"
    assert family.read_text(encoding="utf-8").endswith(shown)
