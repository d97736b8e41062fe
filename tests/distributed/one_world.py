"""Many layouts in one set of processes: starting processes and connecting them is what costs time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


@contextmanager
def joined_processes() -> Iterator[None]:
    """This process joins the others, one thread each; groups of the same ranks are made once."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    make, made = dist.new_group, {}

    def new_group(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        key = tuple(ranks) if ranks is not None else None
        if key not in made:
            made[key] = make(ranks, *args, **kwargs)
        return made[key]

    dist.new_group = new_group
    try:
        yield
    finally:
        dist.new_group = make
        dist.destroy_process_group()
