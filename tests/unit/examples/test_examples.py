"""The scripts in examples/ run as they stand, on a tiny model, and say what they promise."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.stages import StageMarker
from megatron_longrope.config import build_config, write_yaml
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.plan import plan, stages_before
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.rope import METHODS, RopeGeometry, method_from_text, read_factors
from tests.support.tiny_run import TARGET, TUNED, WINDOW, make_model, make_texts, recipe_values

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PAIRS = 8

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts and a recipe."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = make_texts(folder / "texts")
    model = make_model(folder / "model", texts)
    write_yaml(recipe_values(model, texts), folder / "recipe.yaml")
    return folder


class Example:
    """Runs a script of examples/ in this process, as `python FILE ARGUMENTS` would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, name: str, *arguments: object) -> list[str]:
        """Returns the lines printed."""
        path = str(EXAMPLES / name)
        self._monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return self._capsys.readouterr().out.splitlines()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    return Example(monkeypatch, capsys)


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"\d+\.\d+", text)]


def test_every_script_is_short_and_tested_here() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 4
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 60
        assert f'"{script.name}"' in Path(__file__).read_text(encoding="utf-8")
        assert f"`{script.name} " in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_a_model_is_extended(tiny: Path, tmp_path: Path, example: Example) -> None:
    run = tmp_path / "run"
    lines = example(
        *("extend_a_model.py", tiny / "model", *sorted((tiny / "texts").iterdir())),
        *("--target", TUNED, "--run-dir", run, "--steps", 2),
    )
    assert {"import", f"fine-tune-{TUNED}", "report"} < set(lines)
    said = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert Path(said["report"]).read_text(encoding="utf-8").startswith("<!")
    assert json.loads(Path(said["numbers"]).read_text())["target_length"] == TUNED
    exported = json.loads((Path(said["Hugging Face checkpoint"]) / "config.json").read_text())
    assert exported["max_position_embeddings"] == TUNED
    assert (Path(said["Megatron checkpoint"]) / "longrope.json").is_file()
    found = read_factors(run / "factors" / "extended.json").for_length(TUNED)
    assert numbers(lines[-1]) == pytest.approx(found.rescale, abs=1e-4)
    assert numbers(lines[-3]) == pytest.approx([found.attention_factor], abs=1e-4)
    marker = StageMarker.model_validate_json(
        RunDirectory(run).stage(f"fine-tune-{TUNED}").read_text()
    )
    assert marker.is_done


def test_factors_are_searched_and_written(tiny: Path, tmp_path: Path, example: Example) -> None:
    texts = sorted((tiny / "texts").iterdir())[:2]
    command = ("search_factors.py", tiny / "model", *texts, "--target", TUNED, "--out", tmp_path)
    found, rescale, written = example(*command)
    factors = read_factors(Path(written.removeprefix("written to: "))).for_length(TUNED)
    assert factors.target_length == TUNED
    assert numbers(rescale) == pytest.approx(factors.rescale, abs=1e-4)
    (journal,) = (tmp_path / "journals").iterdir()
    evaluations = len(journal.read_text().splitlines()) - 1
    assert found.startswith(f"{evaluations} evaluations, perplexity ")
    # started again, it takes everything from the journal and ends with the same
    before = journal.read_bytes()
    assert example(*command) == [found, rescale, written]
    assert journal.read_bytes() == before


def test_a_new_method_is_compared_with_yarn(tiny: Path, example: Example) -> None:
    text = tiny / "texts" / "text-1.txt"
    try:
        lines = example("new_method.py", tiny / "model", text, "--length", TARGET)
        geometry = RopeGeometry(base=1e4, head_dim=2 * PAIRS, original_length=WINDOW)
        (part,) = method_from_text("step:4", geometry, TARGET).ranges
    finally:
        METHODS.remove("step")
    # 128 / 2π = 20.4 turns of pair 0; 10^(-i/2) times as many of pair i: 2.04 of the third one
    assert part.factors.rescale == (1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0, 4.0)
    values = {line.split()[0]: float(line.split()[1]) for line in lines}
    assert list(values) == ["none", "yarn", "step", "step,turns=4"]
    assert len(set(values.values())) == 4  # each under factors of its own
    assert all(100 < value < 1000 for value in values.values())  # of 320 tokens, untrained


def test_a_recipe_becomes_a_chain_of_jobs(tiny: Path, tmp_path: Path, example: Example) -> None:
    recipe, scripts, run = tiny / "recipe.yaml", tmp_path / "jobs", tmp_path / "run"
    lines = example(
        *("slurm_chain.py", recipe, "--run-dir", run, "--scripts", scripts),
        *("--time", "02:00:00", "--gpus-per-node", 2),
    )
    assert not run.exists()
    jobs = submitted(lines, tmp_path)
    shape = ModelShape(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        num_heads=4,
        num_kv_heads=2,
        head_dim=2 * PAIRS,
        vocab_size=320,
        context_length=WINDOW,
    )
    values = recipe_values(tiny / "model", sorted((tiny / "texts").iterdir()))
    stages = plan(build_config(Recipe, values), shape)
    assert list(jobs) == [stage.name for stage in stages]
    for stage in stages:
        script = (scripts / f"{stage.name}.sh").read_text()
        assert f"extend {recipe} --run-dir {run} --stage {stage.name} " in script
        assert f"#SBATCH --job-name={stage.name}\n" in script
        assert "#SBATCH --time=02:00:00\n" in script
        # what a stage requires is done when its job begins
        assert {other.name for other in stages_before(stages, stage)} <= all_before(
            jobs, stage.name
        )
    assert jobs["import"] == jobs["data-control"] == []
    assert f"recover-{WINDOW}-evolution" not in all_before(jobs, f"search-{TARGET}-evolution")
    # both trainings write metrics.jsonl, which has one writer at a time
    assert f"fine-tune-{TUNED}" in jobs["control"]


def submitted(lines: list[str], folder: Path) -> dict[str, list[str]]:
    """Runs what was printed with a stand-in for sbatch; returns each job's dependencies by name."""
    log, sbatch = folder / "log", folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> "{log}"\nwc -l < "{log}"\n')
    sbatch.chmod(0o755)
    environment = {**os.environ, "PATH": f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        ["bash"], input="\n".join(lines), text=True, check=True, env=environment, timeout=20
    )
    calls = [line.split() for line in log.read_text().splitlines()]
    names = [Path(words[-1]).stem for words in calls]
    jobs = {}
    for name, words in zip(names, calls, strict=True):
        ids = [n for word in words for n in word.partition("afterok:")[2].split(":") if n]
        jobs[name] = [names[int(number) - 1] for number in ids]
    return jobs


def all_before(jobs: dict[str, list[str]], name: str) -> set[str]:
    """Returns the jobs that have ended when the job of that name begins."""
    return {earlier for needed in jobs[name] for earlier in {needed} | all_before(jobs, needed)}
