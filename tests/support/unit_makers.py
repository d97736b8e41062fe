"""Makers of units for tests of `--processes`, in a module that worker processes import quickly."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_longrope.errors import InputError

NUMBER_OF_UNITS = 4


def write(number: int, path: Path, report: Callable[[int], None]) -> dict[str, Any]:
    """Writes the number of the unit a thousand times."""
    path.write_bytes(bytes([number]) * 1000)
    report(1000)
    return {"number": number}


def refuse_the_third(number: int, path: Path, report: Callable[[int], None]) -> dict[str, Any]:
    """Raises the error of a damaged source at unit 2; makes all other units."""
    if number == 2:
        raise InputError("model", "unit 2", "holds NaN or infinity")
    return write(number, path, report)


def die_once(number: int, path: Path, report: Callable[[int], None]) -> dict[str, Any]:
    """Kills its process the first time that it makes unit 2."""
    marker = path.parent.parent.parent / "died"
    if number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(number, path, report)


def never_end(number: int, path: Path, report: Callable[[int], None]) -> dict[str, Any]:
    """Writes down its process id and never ends, until the test kills it."""
    (path.parent.parent.parent / f"pid-{os.getpid()}").touch()
    time.sleep(600)
    return write(number, path, report)


if __name__ == "__main__":  # a parent for the test to kill
    from checkpoints_tools.common.units import Unit, make_units, partial_folder

    with partial_folder(Path(sys.argv[1]) / "target", {}, 0) as partial:
        make_units(
            partial,
            [Unit(f"unit-{n}", 1000) for n in range(NUMBER_OF_UNITS)],
            never_end,
            processes=2,
        )
