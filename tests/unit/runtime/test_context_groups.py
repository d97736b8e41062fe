"""Groups of context parallelism with two levels, and what Transformer Engine's attention is told of
them.

One process stands for each rank in turn: torch's fake process group has ranks and sizes but sends
nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_longrope.errors import InputError, MissingDependencyError
from megatron_longrope.model import build_model
from megatron_longrope.model.engine import choice as backend
from megatron_longrope.model.engine.settings import BackendSettings
from megatron_longrope.runtime import ParallelLayout, Runtime
from megatron_longrope.runtime.runtime import divide_processes
from tests.support.gpu_stacks import H100, SMALL


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@contextmanager
def as_rank(rank: int, layout: ParallelLayout) -> Iterator[Runtime]:
    """This process as one of those that the layout fills."""
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=rank, world_size=layout.model_parallel)
    try:
        with divide_processes(layout, torch.device("cpu"), store) as runtime:
            yield runtime
    finally:
        dist.destroy_process_group()


def ranks_of(groups: Any) -> list[list[int]]:
    return [sorted(dist.get_process_group_ranks(group)) for group in groups]


@pytest.mark.skipif(not installed("einops"), reason="einops comes with Transformer Engine")
def test_inner_groups_are_neighbours_and_outer_groups_connect_them() -> None:
    """What is exchanged most, all-to-all, stays among neighbours, which share a machine."""
    layout = ParallelLayout(context_parallel=4, context_parallel_a2a=2)
    found = []
    for rank in range(4):
        with as_rank(rank, layout) as runtime:
            found.append(ranks_of(runtime.groups.hcp))
    assert found == [[[0, 1], [0, 2]], [[0, 1], [1, 3]], [[2, 3], [0, 2]], [[2, 3], [1, 3]]]


@pytest.mark.skipif(installed("einops"), reason="einops is there")
def test_two_levels_say_what_they_need() -> None:
    with (
        pytest.raises(MissingDependencyError, match="pip install einops"),
        as_rank(0, ParallelLayout(context_parallel=4, context_parallel_a2a=2)),
    ):
        pass


def test_levels_divide() -> None:
    with pytest.raises(
        InputError, match=r"context_parallel=4: must be divisible by context_parallel_a2a=3"
    ):
        ParallelLayout(context_parallel=4, context_parallel_a2a=3).data_parallel(4)


@pytest.mark.skipif(
    not installed("transformer_engine"), reason="Transformer Engine is not installed"
)
@pytest.mark.parametrize("kind", ["p2p", "a2a", "all_gather", "a2a+p2p"])
def test_transformer_engine_is_told_its_groups(kind: Any) -> None:
    inner, size = (2, 4) if kind == "a2a+p2p" else (1, 2)
    layout = ParallelLayout(context_parallel=size, context_parallel_a2a=inner)
    settings = BackendSettings(
        engine="transformer-engine", cp_comm_type=kind, packed=kind in ("p2p", "a2a")
    )
    with (
        as_rank(1, layout) as runtime,
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(backend, "gpu_stack", lambda: H100),
    ):
        model = build_model(SMALL, runtime, dtype=torch.bfloat16, backend=settings)
        core = model.stage.decoder.layers[0].self_attention.core_attention
        told = core.attention
        groups = ranks_of(told.cp_group if isinstance(told.cp_group, list) else [told.cp_group])
    assert groups == ([[0, 1], [1, 3]] if kind == "a2a+p2p" else [[0, 1]])
    assert told.cp_global_ranks == list(range(size)) and told.cp_comm_type == kind
    assert told.cp_stream is not None and core.context_parallel == size
