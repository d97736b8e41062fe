"""The whole method on a tiny model: every stage, skipping, refusing, going on after kills, and what
comes out."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_longrope.artifacts.results import read_evaluations
from megatron_longrope.config import build_config, write_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.extend import check_recipe, run_recipe, run_recipe_stage
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.run import Progress
from megatron_longrope.runtime import start_runtime
from tests.support.tiny_run import TARGET, TUNED, WINDOW, make_recipe

pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("run")
    recipe = make_recipe(folder)
    _run(recipe, folder / "run")
    return recipe, folder / "run"


def _run(recipe: Recipe, run_dir: Path) -> None:
    with start_runtime(recipe.parallel, threads=1) as runtime:
        run_recipe(recipe, run_dir, runtime, Progress())


def _result(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return content


def test_every_stage_leaves_its_files(finished: tuple[Recipe, Path]) -> None:
    _, run = finished
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "result.json",
        "report/index.html",
        "export/config.json",
        f"journals/search-{TUNED}-evolution.jsonl",
        f"factors/search-{TARGET}-evolution.json",
        f"factors/recover-{WINDOW}-evolution.json",
        "factors/extended.json",
        "evals/perplexity.json",
        "evals/passkey.json",
        "evals/exported-perplexity.json",
        "evals/exported-passkey.json",
        "export-static/config.json",
    ):
        assert (run / name).is_file(), name
    assert {stage["status"] for stage in _result(run)["stages"]} == {"done"}
    assert {check["name"] for check in _result(run)["checks"]} == {
        "search-beats-baselines",
        "last-quarter",
        "short-inputs",
        "base-passkeys-beyond",
        "passkeys",
        "export",
    }


def test_what_is_exported_is_measured_and_what_is_left_behind_is_said(
    finished: tuple[Recipe, Path],
) -> None:
    _, run = finished
    export = _result(run)["export"]
    assert export["compared_length"] == TARGET and export["largest_difference"] < 1e-4
    ours, theirs = (
        {
            (row.length, row.document): row
            for row in read_evaluations(run / "evals").perplexity
            if keep(row)
        }
        for keep in (
            lambda row: (
                (row.model, row.method, row.protocol) == ("extended", "longrope", "first-token")
            ),
            lambda row: row.model == "exported",
        )
    )
    assert ours.keys() == theirs.keys()
    for (length, document), row in ours.items():
        # the format has no room for a third set: such inputs get the target's factors
        same = length <= WINDOW or length > TUNED
        assert same == math.isclose(
            row.perplexity, theirs[length, document].perplexity, rel_tol=1e-6
        )
    (text,) = export["left_behind"]
    assert f"inputs of {WINDOW + 1} to {TUNED} tokens" in text
    page = (run / "report" / "index.html").read_text()
    assert text.replace("'", "&#39;") in page and "As exported" in page


def test_factor_sets_follow_the_length_of_the_input(finished: tuple[Recipe, Path]) -> None:
    from megatron_longrope.rope import read_factors

    _, run = finished
    extended = read_factors(run / "factors" / "extended.json")
    for length, source in ((WINDOW, "recover-128"), (TUNED, "search-256"), (TARGET, "search-512")):
        assert extended.for_length(length) == read_factors(
            run / "factors" / f"{source}-evolution.json"
        ).for_length(length)
    tuned, beyond = extended.for_length(TUNED), extended.for_length(TARGET)
    assert all(b >= a for a, b in zip(tuned.rescale, beyond.rescale, strict=True))


def test_the_export_gives_transformers_our_logits(finished: tuple[Recipe, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from checkpoints_tools.load_any import load_model
    from megatron_longrope.model import document_logits

    _, run = finished
    theirs = AutoModelForCausalLM.from_pretrained(run / "export", dtype=torch.float32)
    assert theirs.config.rope_parameters["rope_type"] == "longrope"
    text = AutoTokenizer.from_pretrained(run / "export")(
        "def return self import class", return_tensors="pt"
    )
    assert text["input_ids"].shape[1] > 0
    with start_runtime(threads=1) as runtime:
        ours = load_model(run / "export", runtime, angle_precision="hf").model
        for length in (40, WINDOW, TARGET):
            tokens = np.random.default_rng(length).integers(0, 320, length)
            with torch.no_grad():
                expected = theirs(torch.from_numpy(tokens)[None]).logits[0].numpy()
            assert np.abs(document_logits(ours, tokens) - expected).max() < 1e-4


def test_a_finished_run_does_nothing_again(finished: tuple[Recipe, Path]) -> None:
    recipe, run = finished
    before = {
        path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*") if path.is_file()
    }
    _run(recipe, run)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {stage["status"] for stage in _result(run)["stages"]} == {"skipped"}


def test_a_changed_input_is_named(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, run = finished
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    values = recipe.model_dump(mode="json")
    values["extension"][0]["fine_tune"]["training"]["learning_rate"] = 2e-3
    with pytest.raises(
        InputError, match=r"stage .*fine-tune-256.*training.*changed since the run began"
    ):
        _run(build_config(Recipe, values), copied)


def test_another_precision_of_angles_is_another_run(
    finished: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, run = finished
    shutil.copytree(run, tmp_path / "run")
    values = recipe.model_dump(mode="json") | {"angle_precision": "hf"}
    with pytest.raises(InputError, match=r"stage search-256.*angle_precision.*null → \"hf\""):
        _run(build_config(Recipe, values), tmp_path / "run")


def test_rows_of_tasks_no_longer_measured_go(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, run = finished
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "evals" / "mine.json").write_text('{"rows": []}')
    values = recipe.model_dump(mode="json")
    values["evaluation"]["tasks"] = {}
    for stage in ("evaluate", "evaluate-export"):
        (copied / "stages" / f"{stage}.json").unlink()
    _run(build_config(Recipe, values), copied)
    ours = {"perplexity.json", "positions.json"}
    exported = {f"exported-{name}" for name in ours}
    assert {path.name for path in (copied / "evals").iterdir()} == {*ours, *exported, "mine.json"}
    assert "passkeys" not in (copied / "result.json").read_text()
    # whoever cannot measure the export leaves it out, and all else stays as it is
    values["evaluation"]["exported"] = None
    _run(build_config(Recipe, values), copied)
    assert "evaluate-export" not in {stage["name"] for stage in _result(copied)["stages"]}
    assert {stage["status"] for stage in _result(copied)["stages"]} == {"skipped"}
    (copied / "stages" / "evaluate.json").unlink()
    _run(build_config(Recipe, values), copied)
    assert {path.name for path in (copied / "evals").iterdir()} == {*ours, "mine.json"}


def test_killed_anywhere_it_ends_with_the_same_bits(
    finished: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, undisturbed = finished
    write_yaml(recipe.model_dump(mode="json"), tmp_path / "recipe.yaml")
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "launchers.main",
        "extend",
        str(tmp_path / "recipe.yaml"),
        "--run-dir",
        str(run),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    moments = random.Random(5)
    for _ in range(3):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(7, 14))
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    for name in ("factors/extended.json", "evals/perplexity.json", "evals/passkey.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    ours, theirs = (
        load_file(folder / "export" / "model.safetensors") for folder in (run, undisturbed)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4]


def test_each_stage_alone_gives_what_the_whole_run_gives(
    finished: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, whole = finished
    run = tmp_path / "run"
    names = [stage.name for stage in check_recipe(recipe, run, world_size=1).stages]
    for name in names:
        with start_runtime(recipe.parallel, threads=1) as runtime:
            if name == "search-512-evolution":
                with pytest.raises(InputError, match="not complete"):
                    run_recipe_stage("extended", recipe, run, runtime, Progress())
            run_recipe_stage(name, recipe, run, runtime, Progress())
    for file in ("factors/extended.json", "evals/perplexity.json", "evals/passkey.json"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    results = [_result(folder) for folder in (run, whole)]
    assert results[0]["checks"] == results[1]["checks"]
    assert [stage["name"] for stage in results[0]["stages"]] == names[:-1]
    values = recipe.model_dump(mode="json")
    values["extension"][0]["fine_tune"]["training"]["learning_rate"] = 2e-3
    with (
        start_runtime(recipe.parallel, threads=1) as runtime,
        pytest.raises(InputError, match=r"stage .*fine-tune-256.*changed since the run began"),
    ):
        run_recipe_stage("evaluate", build_config(Recipe, values), run, runtime, Progress())


def test_one_call_from_python(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    from megatron_longrope import extend_context

    recipe, _ = finished
    small = {"population": 6, "mutants": 1, "crossovers": 1, "parents": 2, "iterations": 1}
    search = {"num_documents": 1, "searcher": {"name": "evolution", **small}}
    settings = {f"extension.{n}.search": search for n in (0, 1)}
    settings |= {
        "recovery.0.search": {**search, "attention_factor": "inherited"},
        "extension.0.fine_tune.training": {
            "steps": 2,
            "global_batch_size": 1,
            "learning_rate": 1e-4,
            "warmup_steps": 1,
        },
        "evaluation.tasks.passkey.trials": 1,
        "evaluation.num_documents": 1,
    }
    result = extend_context(
        recipe.model,
        recipe.corpus.documents,
        2 * TUNED,
        run_dir=tmp_path / "run",
        settings=settings,
    )
    assert [entry.up_to for entry in result.factor_set.ranges] == [WINDOW, TUNED, None]
    assert (
        result.report.is_file()
        and result.result_file.is_file()
        and (result.hugging_face / "config.json").is_file()
        and (result.hugging_face_static / "config.json").is_file()
    )
    (text,) = result.left_behind
    assert f"{WINDOW + 1} to {TUNED} tokens" in text
