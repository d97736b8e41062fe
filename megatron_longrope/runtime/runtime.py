"""Start and end of one process's part in a run: device, process groups, seeds."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megatron_longrope.errors import MissingDependencyError
from megatron_longrope.runtime import cpu_platform
from megatron_longrope.runtime.layout import ParallelLayout

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection


@dataclass(frozen=True)
class Runtime:
    """One process's view of the run. Everything that needs a group, a rank or the device takes it
    from here."""

    layout: ParallelLayout
    device: torch.device
    rank: int
    world_size: int
    groups: ProcessGroupCollection
    store: dist.Store
    """Keys and values all processes share."""

    @property
    def leads_group(self) -> bool:
        """Whether this process speaks for its data-parallel group: the first of its tensor,
        pipeline and context ranks."""
        return bool(self.groups.tp.rank() == self.groups.pp.rank() == self.groups.cp.rank() == 0)

    @property
    def data_parallel_size(self) -> int:
        return int(self.groups.dp.size())

    @property
    def data_parallel_rank(self) -> int:
        return int(self.groups.dp.rank())

    @property
    def is_first_stage(self) -> bool:
        return int(self.groups.pp.rank()) == 0

    @property
    def is_last_stage(self) -> bool:
        return int(self.groups.pp.rank()) == int(self.groups.pp.size()) - 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        dist.barrier()

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Returns rank `source`'s `value` (any picklable object of ours) on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's `value`, in rank order, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def process_rank() -> int:
    """This process's rank as torchrun or Slurm told it; 0 where nobody did."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def start_runtime(
    layout: ParallelLayout | None = None,
    *,
    seed: int = 1234,
    timeout_seconds: float = 1800,
    threads: int | None = None,
) -> Iterator[Runtime]:
    """Joins the processes torchrun started (or runs alone), sets device, groups and seeds, and
    cleans up at the end.

    Raises InputError where the layout does not fill the processes.
    """
    layout = layout or ParallelLayout()
    on_cpu = cpu_platform.install()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    layout.data_parallel(world_size)
    if threads is not None:
        torch.set_num_threads(threads)
    device = _pick_device(on_cpu)
    store = join_processes(device, world_size, timeout_seconds)
    try:
        with divide_processes(layout, device, store, seed=seed) as runtime:
            yield runtime
            # the store lives in the first process: it must not end while another reads from it
            runtime.barrier()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def divide_processes(
    layout: ParallelLayout, device: torch.device, store: dist.Store, *, seed: int = 1234
) -> Iterator[Runtime]:
    """Divides processes that have joined already into the layout's groups, and dissolves these at
    the end."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection

    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor_parallel,
            pipeline_model_parallel_size=layout.pipeline_parallel,
            context_parallel_size=layout.context_parallel,
            hierarchical_context_parallel_sizes=_two_levels(layout),
            create_gloo_process_groups=device.type != "cpu",
        )
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        shared = dist.PrefixStore("longrope", store)
        yield Runtime(layout, device, dist.get_rank(), dist.get_world_size(), groups, shared)
    finally:
        parallel_state.destroy_model_parallel()


def _two_levels(layout: ParallelLayout) -> list[int] | None:
    """Sizes of the inner and the outer context-parallel groups, where there are two levels of
    them."""
    inner = layout.context_parallel_a2a
    if inner == 1:
        return None
    if importlib.util.find_spec("einops") is None:
        raise MissingDependencyError(
            "context_parallel_a2a: megatron-core divides two levels of groups with einops, "
            "which comes with Transformer Engine: pip install einops"
        )
    return [inner, layout.context_parallel // inner]


def _pick_device(on_cpu: bool) -> torch.device:
    if on_cpu:
        return cpu_platform.CPU
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def join_processes(device: torch.device, world_size: int, timeout_seconds: float) -> dist.Store:
    """Joins the processes torchrun started, or makes a world of one; returns the store they
    share."""
    on_cpu = device.type == "cpu"
    # gloo serves objects and CPU tensors on GPU machines too
    backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if world_size == 1 and "MASTER_ADDR" not in os.environ:
        store: dist.Store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=None if on_cpu else device,
        )
    return store
