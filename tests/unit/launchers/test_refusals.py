"""Wrong recipes and commands are refused before any stage, in one line, and change nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from launchers.main import main
from tests.support.wrong_inputs import RECIPES, names, write_inputs, wrong_input


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wrong")
    write_inputs(made)
    return made


def _files(*folders: Path) -> dict[Path, str]:
    """Returns the SHA-256 of every file below the folders, and of none for a folder."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for folder in folders
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", names())
def test_it_is_refused(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, before = wrong_input(name, folder), _files(folder, tmp_path)
    for more in ((), ("--dry-run",)) if name in RECIPES else ((),):
        done = CliRunner().invoke(main, [*wrong.arguments, *more])
        assert done.exit_code == 2, done.output
        assert done.output == done.stderr and len(done.output.splitlines()) == 1, done.output
        assert wrong.said in done.stderr, done.stderr
        assert _files(folder, tmp_path) == before


def test_there_are_forty_and_more() -> None:
    assert len(names()) == len(set(names())) >= 40


def test_what_the_cases_are_made_of_is_right(folder: Path) -> None:
    done = CliRunner().invoke(main, ["extend", str(folder / "recipe.yaml"), "--dry-run"])
    assert done.exit_code == 0, done.output
