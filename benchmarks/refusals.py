"""Times how long `longrope` takes to refuse wrong recipes and commands, each in a new process.

python -m benchmarks.refusals            # every case of tests/support/wrong_inputs.py
python -m benchmarks.refusals --only too-little-text no-such-stage
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.wrong_inputs import WrongInput, names, write_inputs, wrong_input


def main() -> None:
    """Prints seconds, processor seconds and the line of each case, the slowest last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cases alone")
    chosen = parser.parse_args().only or names()
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        timed = [(*_refused(wrong_input(name, Path(folder))), name) for name in chosen]
    for seconds, busy, line, name in sorted(timed):
        print(f"{seconds:6.1f} s ({busy:4.1f} s of a core)  {name:<32} {line[:100]}")
    most = max(busy for _, busy, _, _ in timed)
    print(f"{len(timed)} refused; at most {max(timed)[0]:.1f} s, and {most:.1f} s of a core")


def _refused(wrong: WrongInput) -> tuple[float, float, str]:
    """Returns the seconds of a refusal, those a processor was busy with it, and its line.

    Ends where it was not one line and exit code 2. Where others use the machine, the processor's
    seconds say how long it takes alone.

    Modules are found where this process found them, so that it may run from a checkout.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        paths = [path or str(Path.cwd()) for path in sys.path]
        code = f"import sys; sys.path[:0] = {paths!r}; from launchers.main import main; main()"
        started, before = time.monotonic(), _busy_seconds()
        done = subprocess.run(
            [sys.executable, "-c", code, *wrong.arguments],
            capture_output=True,
            text=True,
            cwd=elsewhere,
        )
        seconds, busy = time.monotonic() - started, _busy_seconds() - before
        left = [path.name for path in Path(elsewhere).iterdir()]
    lines = done.stderr.splitlines()
    if done.returncode != 2 or len(lines) != 1 or wrong.said not in lines[0] or left:
        sys.exit(f"{wrong.name} was not refused: exit code {done.returncode}, {left}, {lines}")
    return seconds, busy, lines[0]


def _busy_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
