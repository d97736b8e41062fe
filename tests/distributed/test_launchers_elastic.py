"""torchrun in our wrapper: the workers' exit code is its own, and SIGUSR1 gives them the time they
need."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launchers.jobs.elastic import exit_code_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

WORKER = """
import os, signal, sys, time
from pathlib import Path
folder, what = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
assert os.environ["WORLD_SIZE"] == "2"
if what == "save":
    def save(signum, frame):
        time.sleep(0.5)
        (folder / f"saved{rank}").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
(folder / f"up{rank}").touch()
if what in ("save", "deaf"):
    time.sleep(60)
sys.exit(int(what) if rank == 1 or what == "0" else 0)
"""


def start(folder: Path, what: str) -> subprocess.Popen[str]:
    worker = folder / "worker.py"
    worker.write_text(WORKER)
    argv = [sys.executable, "-m", "launchers.jobs.elastic", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*argv, str(worker), str(folder), what], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def wait_until_up(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not all((folder / f"up{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0, 2])
def test_the_workers_exit_code_is_passed_on_without_a_traceback(code: int, tmp_path: Path) -> None:
    process = start(tmp_path, str(code))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors


@pytest.mark.parametrize(("what", "saved"), [("save", True), ("deaf", False)])
def test_usr1_asks_every_worker_to_stop(what: str, saved: bool, tmp_path: Path) -> None:
    process = start(tmp_path, what)
    wait_until_up(tmp_path)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert all((tmp_path / f"saved{rank}").exists() == saved for rank in (0, 1))


def test_exit_codes_of_signals() -> None:
    assert exit_code_of(-signal.SIGKILL, stop_requested=True) == 137
    assert exit_code_of(-signal.SIGTERM, stop_requested=False) == 143
    assert exit_code_of(-signal.SIGTERM, stop_requested=True) == 75
    assert exit_code_of(3, stop_requested=True) == 3
