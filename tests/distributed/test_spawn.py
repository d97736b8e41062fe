"""The starter of test processes: results in rank order, failures shown, nothing left behind."""

from __future__ import annotations

import os
import time

import pytest

from tests.support.spawn import run_distributed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def _sum_of_ranks(offset: int) -> tuple[int, int]:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor(dist.get_rank() + offset)
    dist.all_reduce(total)
    rank = dist.get_rank()
    dist.destroy_process_group()
    return rank, int(total)


def _fail_on_rank_one() -> None:
    if os.environ["RANK"] == "1":
        raise RuntimeError("as told")
    time.sleep(600)


def _sleep() -> None:
    time.sleep(600)


def test_results_come_back_in_rank_order() -> None:
    assert run_distributed(3, _sum_of_ranks, 10) == [(0, 33), (1, 33), (2, 33)]


def test_one_failing_rank_ends_all_and_is_shown() -> None:
    start = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"(?s)failed on rank 1.*RuntimeError: as told"):
        run_distributed(2, _fail_on_rank_one)
    assert time.monotonic() - start < 60


def test_a_hanging_rank_is_killed_when_time_is_up() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"timed out; still running: ranks \[0\]"):
        run_distributed(1, _sleep, timeout=2)
