"""Stages run once, go on after a failure, and refuse changed inputs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megatron_longrope.artifacts.records import read_record
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.stages import StageMarker
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


def test_seconds_are_those_of_all_attempts(runtime: Runtime, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)

    def fails() -> None:
        time.sleep(0.3)
        raise RuntimeError("a kill")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            StageRunner(directory, runtime).run("search", {}, fails)
    runner = StageRunner(directory, runtime)
    runner.run("search", {}, lambda: time.sleep(0.3))
    (record,) = runner.records
    marker = read_record(directory.stage("search"), StageMarker)
    assert marker.is_done and 0.9 <= marker.seconds < 60
    assert record.seconds == round(marker.seconds, 2)
    again = StageRunner(directory, runtime)
    again.run("search", {}, fails)
    assert again.records[0].seconds == record.seconds


def test_a_kill_loses_few_seconds_only(runtime: Runtime, tmp_path: Path) -> None:
    directory, seen = RunDirectory(tmp_path), []

    def work() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # a kill here would leave the marker as it is now
            seen[:] = [read_record(directory.stage("search"), StageMarker)]
            if seen[0].seconds:
                return
            time.sleep(0.01)

    StageRunner(directory, runtime, seconds_between_notes=0.05).run("search", {"seed": 1}, work)
    (marker,) = seen
    assert not marker.is_done and marker.inputs == {"seed": 1} and marker.seconds > 0


def test_an_input_that_earlier_versions_did_not_name(runtime: Runtime, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for name, inputs in (("old", {"seed": 1}), ("new", {"seed": 1, "dtype": "float32"})):
        StageRunner(directory, runtime).run(name, inputs, lambda: 7)
    now, added = {"seed": 1, "dtype": "bfloat16"}, ("dtype",)
    runner = StageRunner(directory, runtime)
    assert runner.run("old", now, lambda: 8, added) == 7
    with pytest.raises(InputError, match="stage new=dtype"):
        runner.run("new", now, lambda: 8, added)
