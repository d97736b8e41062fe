"""`longrope report`: hands the folder on, says where the page is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from launchers.main import main
from megatron_longrope import report


def test_the_page_is_named_on_stdout_and_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write_report", lambda run_dir: run_dir / "report" / "index.html")
    out = tmp_path / "out.json"
    result = CliRunner().invoke(main, ["report", str(tmp_path), "--json", str(out)])
    page = str(tmp_path / "report" / "index.html")
    assert (result.exit_code, result.stdout) == (0, f"report: {page}\n")
    assert json.loads(out.read_text()) == {"run_dir": str(tmp_path), "report": page}


def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path / "gone")])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
