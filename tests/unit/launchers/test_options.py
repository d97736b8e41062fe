"""Shared option types and the writer behind --json."""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from launchers.command_table import COMMANDS
from launchers.options import LENGTH, LENGTHS, json_option, set_option, write_json
from megatron_longrope.config import apply_settings, parse_overrides
from megatron_longrope.errors import InputError


@click.command()
@click.option("--target", type=LENGTH, default="2k")
@click.option("--lengths", type=LENGTHS, default="2k,8k")
@set_option
@json_option
def probe(
    target: int, lengths: tuple[int, ...], overrides: tuple[str, ...], json_path: Path | None
) -> None:
    click.echo(
        json.dumps(
            [
                target,
                lengths,
                apply_settings({}, parse_overrides(overrides)),
                json_path and str(json_path),
            ]
        )
    )


def run(*arguments: str) -> Result:
    return CliRunner().invoke(probe, arguments)


def test_lengths_read_as_people_write_them() -> None:
    assert json.loads(run().stdout)[:2] == [2048, [2048, 8192]]
    assert json.loads(run("--target", "2M", "--lengths", "256k, 300").stdout)[:2] == [
        2097152,
        [262144, 300],
    ]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--target", "2kk"], "--target"),
        (["--target", "0"], "--target"),
        (["--lengths", "2k,,4k"], "--lengths"),
        (["--lengths", "2k,2048"], "--lengths"),
    ],
)
def test_a_wrong_length_names_its_option(arguments: list[str], field: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, InputError)
    assert error.field == field


def test_overrides_reach_into_lists_by_number() -> None:
    values = {"steps": [{"length": 1}, {"length": 2}], "other": [1, 2]}
    changed = apply_settings(values, parse_overrides(["steps.1.length=4k", "other.0=7"]))
    assert changed == {"steps": [{"length": 1}, {"length": "4k"}], "other": [7, 2]}
    assert values == {"steps": [{"length": 1}, {"length": 2}], "other": [1, 2]}
    for wrong in ("steps.2.length=1", "steps.last.length=1", "other.-1=1", "other.0.x=1"):
        with pytest.raises(InputError, match="setting"):
            apply_settings(values, parse_overrides([wrong]))


def test_overrides_and_json_path_arrive() -> None:
    assert json.loads(run("--set", "a.b=2e-5", "--set", "c=off", "--json", "x.json").stdout)[
        2:
    ] == [
        {"a": {"b": 2e-5}, "c": "off"},
        "x.json",
    ]


def test_json_is_valid_whatever_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(
        path,
        {
            "a": math.inf,
            "b": [math.nan, 1.5],
            "c": np.float32(0.5),
            "d": np.arange(2),
            "e": tmp_path,
        },
    )
    assert json.loads(path.read_text()) == {
        "a": None,
        "b": [None, 1.5],
        "c": 0.5,
        "d": [0, 1],
        "e": str(tmp_path),
    }
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_json_reads_back(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        write_json(path, {"value": value})
        text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word)).keys() == {"value"}


def test_json_into_a_missing_folder_is_a_persons_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--json"):
        write_json(tmp_path / "gone" / "result.json", {})


def test_a_failed_write_leaves_the_old_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_json_file_in_a_missing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    error = run("--json", str(tmp_path / "gone" / "x.json")).exception
    assert isinstance(error, InputError)
    assert error.field == "--json"


def test_every_command_that_writes_json_checks_its_folder_first() -> None:
    commands = [
        *(importlib.import_module(f"launchers.commands.{name}").command for name in COMMANDS),
    ]
    found = 0
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        for param in command.params:
            if "--json" in param.opts:
                found += 1
                with pytest.raises(InputError, match="its folder does not exist"):
                    param.process_value(click.Context(command), "gone/x.json")
    assert found >= 10
