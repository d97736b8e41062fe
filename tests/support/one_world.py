"""Tests many layouts in one set of processes, as starting and connecting processes is slow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from megatron_longrope.runtime.runtime import join_processes


@contextmanager
def joined_processes() -> Iterator[dist.Store]:
    """Joins the other processes, with one thread each, and yields their common store.

    Process groups of the same ranks are made once and shared by all layouts inside the block.
    """
    torch.set_num_threads(1)
    store = join_processes(torch.device("cpu"), int(os.environ["WORLD_SIZE"]), timeout_seconds=600)
    make, made = dist.new_group, {}

    def new_group(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        key = tuple(ranks) if ranks is not None else None
        if key not in made:
            made[key] = make(ranks, *args, **kwargs)
        return made[key]

    dist.new_group = new_group
    try:
        yield store
    finally:
        dist.new_group = make
        dist.destroy_process_group()
