"""Plug-ins of other packages: found by their entry points, imported before a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def _install(folder: Path, module: str) -> None:
    """Puts a distribution into `folder` whose plug-in is a module of this text."""
    (folder / "visitor.py").write_text(module, encoding="utf-8")
    info = folder / "visitor-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: visitor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[megatron_longrope.plugins]\nguest = visitor\n")


def _longrope(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "launchers.main", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_plug_in_is_imported_before_the_command(tmp_path: Path) -> None:
    _install(tmp_path, "print('the guest is here')\n")
    done = _longrope(tmp_path, "launch", "torchrun", "--nproc-per-node", "1", "--", "doctor")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "the guest is here"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("raise ValueError('no guests')\n", "ValueError: no guests"),
    ],
)
def test_one_that_fails_is_named(module: str, said: str, tmp_path: Path) -> None:
    _install(tmp_path, module)
    done = _longrope(tmp_path, "factors", "list")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and "plug-in=guest: visitor cannot be imported" in lines[0]
    assert said in lines[0]
    assert _longrope(tmp_path, "--help").returncode == 0  # which names the commands all the same
