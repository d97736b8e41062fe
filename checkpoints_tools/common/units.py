"""Makes a folder file by file, in one process or several, and goes on after a kill at any moment.

Each file is a unit of work. The folder is made beside its place, with notes on what is done:

    <target>.partial/.conversion/plan.json     what is being converted; another plan starts over
    <target>.partial/.conversion/<n>.json      record of unit n, written once its file is on disk
    <target>.partial/.conversion/<n>.<pid>     file of unit n while process <pid> writes it

A unit's bytes depend on the plan alone. So the result has the same bytes however often it was
interrupted, and a unit that two processes make is the same file twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import torch

from megatron_longrope.atomic import write_text_file
from megatron_longrope.errors import InputError, LongRopeError

Report = Callable[[int], None]
"""A callback that takes the bytes written since the last call."""
Progress = Callable[[int, int], None]
"""A callback that takes the bytes done, an interrupted run's included, and the bytes in all."""
Record: TypeAlias = dict[str, Any]
Maker = Callable[[int, Path, Report], Record]
"""A picklable function that writes unit n to a path and returns its record, to be kept as JSON."""
_FOLDER = ".conversion"
_ORPHAN_CHECK_SECONDS = 0.25


@dataclass(frozen=True)
class Unit:
    """One file of the folder to make."""

    path: str
    """Path of the file below the folder."""
    num_bytes: int
    """Size of its weights in bytes; the file may be a little larger."""


def refuse_existing(field: str, target: Path) -> None:
    """Raises InputError where something is at `target` already; an empty folder is accepted."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise InputError(
            field,
            target,
            "exists and is left alone; --replace puts a new model in the place of a model",
        )


def missing_parents(path: Path) -> list[Path]:
    """Returns the parent folders of `path` that do not exist yet, the innermost first."""
    return [folder for folder in path.parents if not folder.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, given the innermost first, and stops at the first that is not empty."""
    for folder in folders:
        if any(folder.iterdir()):
            return
        folder.rmdir()


@contextmanager
def partial_folder(target: Path, plan: Mapping[str, Any], num_bytes: int) -> Iterator[Path]:
    """Yields the folder in which `target` is made, with what an interrupted run has finished.

    Files that a run of another `plan` has left are removed first. Where the block raises a
    LongRopeError the folder is removed, with the parents made for it; after a kill or an error of
    the disk it stays, for the same call to go on from. Raises InputError while another process
    works on the folder, and where the disk has no room for `num_bytes`.
    """
    partial = target.with_name(target.name + ".partial")
    text = json.dumps(plan, sort_keys=True, indent=1)
    marker = partial / _FOLDER / "plan.json"
    made = missing_parents(partial)
    if not (marker.is_file() and marker.read_bytes() == text.encode()):
        with _locked(partial):  # refuses while another process works in what is removed
            shutil.rmtree(partial, ignore_errors=True)
        try:
            (partial / _FOLDER).mkdir(parents=True)
            write_text_file(marker, text)
        except OSError as error:
            raise InputError("target", partial, f"cannot be made: {error.strerror}") from error
    with _locked(partial):
        try:
            _check_room(partial, num_bytes)
            yield partial
        except OSError as error:
            raise LongRopeError(
                f"{target}: {error.strerror or error}; the same command goes on from here"
            ) from error
        except LongRopeError:
            shutil.rmtree(partial, ignore_errors=True)
            remove_empty(made)
            raise


def forget(partial: Path) -> None:
    """Removes the notes on finished units, the last step before the folder is put in place."""
    shutil.rmtree(partial / _FOLDER)


def make_units(
    partial: Path,
    units: Sequence[Unit],
    maker: Maker,
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> list[Record]:
    """Makes the units that are not finished yet and returns the records of all, in order.

    Args:
        partial: the folder of `partial_folder`.
        units: all files to make.
        maker: writes one of them.
        processes: number of processes to make them in; 1 is this process itself.
        progress: called with bytes done and in all; with several processes after every unit.
    """
    records = {
        number: record
        for number, unit in enumerate(units)
        if (record := _finished(partial, number, unit))
    }
    total, done = sum(unit.num_bytes for unit in units), sum(units[n].num_bytes for n in records)
    meter = _Meter(total, done, progress)
    missing = [number for number in range(len(units)) if number not in records]
    if processes == 1 or len(missing) <= 1:
        for number in missing:
            records[number] = _make(partial, number, units[number], maker, meter.add)
    else:
        workers = min(processes, len(missing))
        records |= _make_in_processes(partial, units, missing, maker, workers, meter)
    return [records[number] for number in range(len(units))]


class _Meter:
    """Sums the bytes done and passes them on to the caller's progress callback."""

    def __init__(self, total: int, done: int, progress: Progress | None) -> None:
        self.total, self.done, self.progress = total, done, progress

    def add(self, num_bytes: int) -> None:
        """Counts bytes as done and reports the new sum."""
        self.done += num_bytes
        if self.progress is not None:
            self.progress(self.done, self.total)


def _make_in_processes(
    partial: Path,
    units: Sequence[Unit],
    missing: Sequence[int],
    maker: Maker,
    processes: int,
    meter: _Meter,
) -> dict[int, Record]:
    records: dict[int, Record] = {}
    threads = max(1, torch.get_num_threads() // processes)
    # "spawn", since a fork of a process with running torch threads may hang
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(), threads)
    )
    try:
        waiting: dict[Future[Record], int] = {
            pool.submit(_make, partial, number, units[number], maker, _ignore): number
            for number in missing
        }
        while waiting:
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                number = waiting.pop(done)
                records[number] = done.result()
                meter.add(units[number].num_bytes)
    except BrokenProcessPool as error:
        raise OSError("a conversion process was killed") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return records


def _make(partial: Path, number: int, unit: Unit, maker: Maker, report: Report) -> Record:
    scratch = partial / _FOLDER / f"{number}.{os.getpid()}"
    record = maker(number, scratch, report)
    _sync(scratch)
    final = partial / unit.path
    final.parent.mkdir(parents=True, exist_ok=True)
    record = record | {"file_bytes": scratch.stat().st_size}
    os.replace(scratch, final)
    # The record comes after the file: a unit with a record is whole, whenever a kill strikes.
    write_text_file(partial / _FOLDER / f"{number}.json", json.dumps(record))
    return record


def _finished(partial: Path, number: int, unit: Unit) -> Record | None:
    note, file = partial / _FOLDER / f"{number}.json", partial / unit.path
    if not note.is_file() or not file.is_file():
        return None
    record: Record = json.loads(note.read_text(encoding="utf-8"))
    return record if record["file_bytes"] == file.stat().st_size else None


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _check_room(partial: Path, num_bytes: int) -> None:
    there = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    free = shutil.disk_usage(partial).free
    if num_bytes - there > free:
        raise InputError(
            "target",
            partial,
            f"needs {(num_bytes - there) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
        )


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Locks the folder against a second run; the lock ends with this process, however it ends."""
    if not partial.is_dir():
        yield
        return
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError("target", partial, "another conversion is at work on it") from error
    finally:
        os.close(descriptor)


def _start_worker(parent: int, threads: int) -> None:
    """Prepares a worker process: its share of the threads, and an end when its parent ends.

    Workers with as many threads as there are cores would keep one another waiting.
    """
    torch.set_num_threads(threads)
    _end_with_parent(parent)


def _end_with_parent(parent: int) -> None:
    """Ends this worker once its parent was killed, so that it does not work on beside a new run."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_ORPHAN_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ignore(num_bytes: int) -> None:
    """Does nothing: bytes written in a worker process count once the whole unit is done."""
