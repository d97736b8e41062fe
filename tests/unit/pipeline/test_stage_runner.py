"""Stages run once, go on after a failure, and refuse changed inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.stages.runner import StageRunner
from megatron_longrope.runtime import Runtime


def test_a_stage_runs_once_and_names_a_changed_input(runtime: Runtime, tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"answer": 42}

    for expected in (1, 1):
        runner = StageRunner(RunDirectory(tmp_path), runtime)
        assert runner.run("search", {"length": 8, "seed": 1}, work) == {"answer": 42}
        assert len(calls) == expected
    with pytest.raises(InputError, match=r"stage search=seed: .*1 → 2"):
        StageRunner(RunDirectory(tmp_path), runtime).run("search", {"length": 8, "seed": 2}, work)


def test_a_stage_that_failed_runs_again(runtime: Runtime, tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("a kill")

    runner = StageRunner(RunDirectory(tmp_path), runtime)
    with pytest.raises(RuntimeError):
        runner.run("search", {"seed": 1}, fails)
    with pytest.raises(InputError, match="changed since the run began"):
        runner.run("search", {"seed": 2}, lambda: 1)
    assert runner.run("search", {"seed": 1}, lambda: 7) == 7


def test_a_damaged_marker_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.stage("search").parent.mkdir()
    directory.stage("search").write_text('{"status": "do')
    with pytest.raises(InputError, match="damaged marker"):
        StageRunner(directory, runtime).run("search", {}, lambda: 1)
