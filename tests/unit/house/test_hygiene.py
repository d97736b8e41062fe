"""What a committed file may not be: too long to read, or tied to somebody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MAX_LINES = 400
# Written such that this line is not a path itself.
HOME_PATH = re.compile(r"(?<![\w.~-])/(?:home|Users|root)/[A-Za-z0-9._-]")
_NOT_OURS = {
    ".venv",
    ".git",
    "runs",
    "build",
    "dist",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
}


def committed_files() -> list[Path]:
    """Returns the files git tracks; outside a checkout every file that is not made by a tool."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        return [
            path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()
        ]
    return [
        p for p in ROOT.rglob("*") if p.is_file() and not _NOT_OURS & set(p.relative_to(ROOT).parts)
    ]


def text_of(path: Path) -> str | None:
    """Returns the text of a file, None for a binary one."""
    content = path.read_bytes()
    if b"\0" in content[:8192]:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def test_no_python_file_is_too_long() -> None:
    lengths = {
        path: len((text_of(path) or "").splitlines())
        for path in committed_files()
        if path.suffix == ".py"
    }
    too_long = {
        str(path.relative_to(ROOT)): count for path, count in lengths.items() if count > MAX_LINES
    }
    assert lengths
    assert not too_long


def test_no_committed_text_names_a_home_directory() -> None:
    found = []
    for path in committed_files():
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1):
            if HOME_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert not found


def test_a_home_directory_is_recognised() -> None:
    slash = "/"
    assert HOME_PATH.search(f"path = '{slash}home{slash}ann{slash}runs'")
    assert HOME_PATH.search(f"{slash}root{slash}.cache")
    assert not HOME_PATH.search(
        f"https:{slash}{slash}example.org{slash}pages{slash}home{slash}index"
    )
    assert not HOME_PATH.search("megatron_longrope/root/x")
