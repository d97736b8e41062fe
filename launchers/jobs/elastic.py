"""Runs torchrun and exits with the exit code of its workers.

Used as `python -m launchers.jobs.elastic TORCHRUN_OPTIONS -m MODULE ARGS`. torch.distributed.run
itself ends with 1 and a traceback whatever its workers said, so that neither "bad input" (2) nor
"interrupted, start me again" (75) would reach a script or Slurm. It also kills workers 30 seconds
after a SIGTERM, too soon for a large checkpoint to be saved: SIGUSR1 here asks the workers to stop
and waits for as long as they take.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from megatron_longrope.errors import EXIT_RESUMABLE


class StopRequest:
    """Handles SIGUSR1: asks the workers, by SIGTERM, to save and to end with exit code 75."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handles the signal; raises SignalException where no worker has been started yet."""
        self.seen = True
        workers = psutil.Process().children()
        if not workers:  # still waiting for the other machines
            raise SignalException(
                "asked to stop before the workers started", signal.Signals(signum)
            )
        for worker in workers:
            worker.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs torchrun with `arguments` and returns the exit code.

    It is 0, or the code of the worker that failed first.
    """
    stop = StopRequest()
    signal.signal(signal.SIGUSR1, stop)
    try:
        run(parse_args(list(arguments) if arguments is not None else None))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = exit_code_of(failure.exitcode, stop.seen)
        print(
            f"rank {rank} ended first, with exit code {failure.exitcode}; exiting with {code}",
            file=sys.stderr,
        )
        return code
    except SignalException as error:
        print(f"stopped by {error.sigval.name}", file=sys.stderr)
        return (
            EXIT_RESUMABLE
            if error.sigval in (signal.SIGINT, signal.SIGUSR1)
            else 128 + error.sigval
        )
    return 0


def exit_code_of(worker_code: int, stop_requested: bool) -> int:
    """Returns a worker's exit code as a shell gives it: 128 + n for signal n (−n in Python).

    A worker that is asked to stop before it has installed its handler dies of the SIGTERM itself;
    nothing is lost, so that this counts as resumable too.

    >>> exit_code_of(-9, stop_requested=False), exit_code_of(-15, stop_requested=True)
    (137, 75)
    """
    if worker_code >= 0:
        return worker_code
    if stop_requested and -worker_code == signal.SIGTERM:
        return EXIT_RESUMABLE
    return 128 - worker_code


if __name__ == "__main__":
    sys.exit(main())
