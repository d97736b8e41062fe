"""`longrope extend`: what it is told, and what a dry run says without touching weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from launchers.main import main
from megatron_longrope.config import write_yaml
from tests.support.tiny_run import TARGET, make_model, make_texts, recipe_values


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts and a recipe."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = make_texts(folder / "texts")
    model = make_model(folder / "model", texts)
    write_yaml(recipe_values(model, texts), folder / "recipe.yaml")
    return folder


def extend(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["extend", *map(str, arguments)])


def fitted(folder: Path, *more: object) -> tuple[object, ...]:
    small = ("--set", "corpus.num_search=3", "--set", "corpus.num_evaluation=2")
    return (
        *("--model", folder / "model", "--text", folder / "texts", "--target", TARGET),
        *("--dry-run", *small, *more),
    )


def test_a_dry_run_lists_every_stage_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "plan.json", tmp_path / "run"
    done = extend(tiny / "recipe.yaml", "--run-dir", run, "--dry-run", "--json", out)
    assert done.exit_code == 0, done.output
    stages = json.loads(out.read_text())["stages"]
    assert [stage["name"] for stage in stages][:2] == ["import", "search-256-evolution"]
    for stage in stages:
        assert stage["name"] in done.output
        assert stage.keys() == {
            *("name", "kind", "does", "checkpoint", "inputs", "outputs", "cost"),
        }
    assert "7 to train on" in done.output
    assert "FLOP" in done.output
    assert not run.exists()


def test_a_model_is_extended_by_the_recipe_fitted_to_it(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = extend(*fitted(tiny, "--json", out))
    assert done.exit_code == 0, done.output
    stages = {stage["name"]: stage for stage in json.loads(out.read_text())["stages"]}
    assert list(stages) == [
        *("import", "search-256", "data-fine-tune-256", "fine-tune-256", "search-512"),
        *("recover-128", "extended", "evaluate", "export", "evaluate-export", "report"),
    ]
    # what a person with a laptop had better see, and set lower, before the work begins
    assert "400 steps of 32 × 256" in stages["fine-tune-256"]["does"]


def test_several_texts_follow_one_flag(tiny: Path) -> None:
    texts = sorted((tiny / "texts").glob("*.txt"))
    few = ("--set", "extension.0.fine_tune.training.global_batch_size=2")
    arguments = ("--model", tiny / "model", "--target", TARGET, "--dry-run", "--text", *texts[:9])
    done = extend(*arguments, *few)
    assert done.exit_code == 0, done.output
    assert "1 to train on" in done.output


def _no_layout(values: dict[str, Any], folder: Path) -> None:
    values["parallel"] = {"tensor_parallel": 3}


def _no_batch(values: dict[str, Any], folder: Path) -> None:
    values["extension"][0]["fine_tune"]["training"]["micro_batch_size"] = 4


def _inside_window(values: dict[str, Any], folder: Path) -> None:
    values["extension"][0]["length"] = 64


def _no_text(values: dict[str, Any], folder: Path) -> None:
    values["corpus"]["documents"] = [str(folder / "gone.txt")]


def _too_long(values: dict[str, Any], folder: Path) -> None:
    values["extension"][1]["length"] = "64k"
    values["evaluation"]["lengths"] = ["64k"]


def _too_many_windows(values: dict[str, Any], folder: Path) -> None:
    values["recovery"][0]["search"]["windows_per_document"] = 99


def _other_family(values: dict[str, Any], folder: Path) -> None:
    model = folder / "other"
    model.mkdir()
    for file in (folder / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))
    values["model"] = str(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_no_layout, "num_heads"),
        (_no_batch, "global_batch_size"),
        (_inside_window, "must exceed the model's window"),
        (_no_text, "gone.txt"),
        (_too_long, "5 are needed (3 to search on"),
        (_too_many_windows, "recovery.0.search"),
        (_other_family, "gpt_neox"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    change: Any, said: str, tiny: Path, tmp_path: Path
) -> None:
    texts = sorted((tiny / "texts").glob("*.txt"))
    values = recipe_values(tiny / "model", texts)
    change(values, tiny)
    write_yaml(values, tmp_path / "recipe.yaml")
    done = extend(tmp_path / "recipe.yaml", "--dry-run")
    assert done.exit_code == 2
    assert said in done.output and len(done.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either RECIPE, or --model"),
        (("demo", "--model", "x"), "give either RECIPE, or --model"),
        (("--model", "x", "--target", "4k"), "--text"),
        (("--model", "x", "--text", "a.txt"), "--target"),
        (("demo", "--target", "4k"), "goes with --model"),
        (("demo", "--text", "a.txt"), "goes with --model"),
        (("demo", "--dry-run", "--stage", "import"), "--stage"),
        (("demo", "--stage", "nonsense"), "one of import, search-4096"),
        (("demo", "--dry-run", "--json", "gone/x.json"), "its folder does not exist"),
        (("--model", "x", "--target", "4k", "--text", "gone/*.txt"), "x"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = extend(*arguments)
    assert done.exit_code == 2
    assert said in done.output and len(done.output.splitlines()) == 1, done.output


def test_an_argument_goes_before_settings(tiny: Path) -> None:
    done = extend("--set", "seed=3", tiny / "recipe.yaml", "--dry-run")
    assert done.exit_code == 0, done.output
