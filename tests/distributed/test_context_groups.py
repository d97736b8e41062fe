"""Process groups of context parallelism with two levels, and what Transformer Engine's attention gets of them."""

from __future__ import annotations

import importlib.util
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from megatron_longrope.model import backend, build_model
from megatron_longrope.model.backend_settings import BackendSettings
from megatron_longrope.runtime import ParallelLayout, start_runtime
from tests.distributed.spawn import run_distributed
from tests.gpu_stacks import H100, SMALL

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(330)]


def two_levels() -> list[list[int]]:
    """Runs on each rank: returns the ranks of its inner and its outer context-parallel group."""
    with start_runtime(ParallelLayout(context_parallel=4, context_parallel_a2a=2)) as runtime:
        return [sorted(dist.get_process_group_ranks(group)) for group in runtime.groups.hcp]


@pytest.mark.skipif(importlib.util.find_spec("einops") is None, reason="einops comes with Transformer Engine")
def test_inner_groups_are_neighbours_and_outer_groups_connect_them() -> None:
    """What is exchanged most, all-to-all, stays among neighbours, which share a machine."""
    assert run_distributed(4, two_levels, timeout=300) == [
        [[0, 1], [0, 2]], [[0, 1], [1, 3]], [[2, 3], [0, 2]], [[2, 3], [1, 3]],
    ]  # fmt: skip


def groups_of_attention(layout: ParallelLayout, settings: BackendSettings) -> dict[str, Any]:
    """Runs on each rank: builds Transformer Engine's layers and returns what its attention was told."""
    with start_runtime(layout) as runtime:
        with (
            patch.object(torch.cuda, "is_available", lambda: True),
            patch.object(backend, "gpu_stack", lambda: H100),
        ):
            model = build_model(SMALL, runtime, dtype=torch.bfloat16, backend=settings)
        core = model.stage.decoder.layers[0].self_attention.core_attention
        told = core.attention
        groups = told.cp_group if isinstance(told.cp_group, list) else [told.cp_group]
        return {
            "kind": told.cp_comm_type,
            "ranks": told.cp_global_ranks,
            "groups": [sorted(dist.get_process_group_ranks(group)) for group in groups],
            "has_stream": told.cp_stream is not None,
            "context_parallel": core.context_parallel,
        }


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None, reason="Transformer Engine is not installed"
)
@pytest.mark.parametrize("kind", ["p2p", "a2a", "all_gather", "a2a+p2p"])
def test_transformer_engine_is_told_its_groups(kind: Any) -> None:
    inner = 2 if kind == "a2a+p2p" else 1
    size = 4 if kind == "a2a+p2p" else 2
    layout = ParallelLayout(context_parallel=size, context_parallel_a2a=inner)
    settings = BackendSettings(engine="transformer-engine", cp_comm_type=kind, packed=kind in ("p2p", "a2a"))
    first = run_distributed(size, groups_of_attention, layout, settings, timeout=300)[0]
    expected = [[0, 1], [0, 2]] if kind == "a2a+p2p" else [[0, 1]]
    assert first == {"kind": kind, "ranks": list(range(size)), "groups": expected, "has_stream": True,
                     "context_parallel": size}  # fmt: skip
