"""Conversions by several processes: one that refuses, one that is killed, a killed parent. None
waits for ever."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoints_tools.common.units import Maker, Unit, forget, make_units, partial_folder
from megatron_longrope.errors import InputError, LongRopeError
from tests.support.unit_makers import NUMBER_OF_UNITS, die_once, refuse_the_third

pytestmark = pytest.mark.timeout(300)
REPOSITORY = Path(__file__).parents[3]


def convert(target: Path, maker: Maker) -> list[tuple[int, int]]:
    """Makes the units by two processes, puts them in place and returns what was shown of the
    progress."""
    seen: list[tuple[int, int]] = []
    units = [Unit(f"unit-{number}", 1000) for number in range(NUMBER_OF_UNITS)]
    with partial_folder(target, {"test": 1}, 4000) as partial:
        records = make_units(
            partial, units, maker, processes=2, progress=lambda *numbers: seen.append(numbers)
        )
        forget(partial)
        partial.rename(target)
    assert [record["number"] for record in records] == [*range(NUMBER_OF_UNITS)]
    return seen


def test_a_killed_worker_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match="was killed; the same command goes on"):
        convert(tmp_path / "target", die_once)
    assert not (tmp_path / "target").exists() and (tmp_path / "target.partial").is_dir()
    seen = convert(tmp_path / "target", die_once)
    assert seen[-1] == (4000, 4000)
    assert [(tmp_path / "target" / f"unit-{n}").read_bytes() for n in range(4)] == [
        bytes([n]) * 1000 for n in range(4)
    ]


def test_what_a_worker_refuses_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^model=unit 2: holds NaN or infinity$"):
        convert(tmp_path / "target", refuse_the_third)
    assert not list(tmp_path.iterdir())


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.unit_makers", str(tmp_path)]
    parent = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        workers = wait_for(
            lambda: [int(path.name[4:]) for path in tmp_path.glob("pid-*")],
            lambda pids: len(pids) == 2,
        )
    finally:
        parent.kill()
        parent.wait()
    wait_for(
        lambda: [pid for pid in workers if Path(f"/proc/{pid}").exists() and not is_zombie(pid)],
        lambda pids: not pids,
    )


def wait_for(look, enough, seconds: float = 200.0):  # type: ignore[no-untyped-def]
    """Returns what `look` sees as soon as it is `enough`."""
    until = time.monotonic() + seconds
    while not enough(found := look()):
        assert time.monotonic() < until, found
        time.sleep(0.1)
    return found


def is_zombie(pid: int) -> bool:
    """Returns whether a process has ended and waits for init to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
