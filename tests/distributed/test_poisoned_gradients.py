"""One rank's gradient that is no number: all ranks leave the step out, and go on together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from megatron_longrope.runtime import ParallelLayout
from megatron_longrope.runtime.runtime import divide_processes
from tests.support.one_world import joined_processes
from tests.support.poison import is_equal, moments_of, poisoned_trainer, weights_of, write_rows
from tests.support.spawn import run_distributed
from tests.support.tiny_models import HfWeights, tiny_hf_model

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
LAYOUTS = {
    "DP2": ParallelLayout(),
    "TP2": ParallelLayout(tensor_parallel=2),
    "PP2": ParallelLayout(pipeline_parallel=2),
    "CP2": ParallelLayout(context_parallel=2),
}


class Seen(NamedTuple):
    """What one rank saw of three steps of which the second is spoilt."""

    norms: list[float]
    skipped: list[int]
    is_untouched: bool
    """Whether the second step left weights and moments as they were."""
    moves_on: bool
    """Whether the third changed weights."""


def three_steps(weights: HfWeights, dataset: Path) -> dict[str, Seen]:
    """Runs on each of two ranks; only the second one's gradient is spoilt."""
    seen = {}
    with joined_processes() as store:
        for name, layout in LAYOUTS.items():
            with divide_processes(layout, torch.device("cpu"), store) as runtime:
                steps = {2} if torch.distributed.get_rank() == 1 else set()
                trainer = poisoned_trainer(runtime, weights, dataset, steps)
                reports = [trainer.step()]
                before, moments = weights_of(trainer), moments_of(trainer)
                reports.append(trainer.step())
                is_untouched = is_equal(weights_of(trainer), before) and all(
                    torch.equal(mine, other)
                    for mine, other in zip(moments_of(trainer), moments, strict=True)
                )
                reports.append(trainer.step())
                seen[name] = Seen(
                    [report.gradient_norm for report in reports],
                    [report.skipped for report in reports],
                    is_untouched,
                    not is_equal(weights_of(trainer), before),
                )
    return seen


def test_all_ranks_leave_out_the_step_that_one_rank_spoils(tmp_path: Path) -> None:
    write_rows(tmp_path / "train")
    ranks = run_distributed(2, three_steps, HfWeights.of(tiny_hf_model()), tmp_path / "train")
    for name in LAYOUTS:
        for seen in (rank[name] for rank in ranks):
            assert [math.isfinite(norm) for norm in seen.norms] == [True, False, True], name
            assert seen.skipped == [0, 1, 1], name
            assert seen.is_untouched and seen.moves_on, name
        assert ranks[0][name].norms[::2] == ranks[1][name].norms[::2], name
