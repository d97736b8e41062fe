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
    """One process's view of the run: its device, its ranks and its process groups.

    Everything that needs one of them takes it from here, not from megatron-core's global state.
    """

    layout: ParallelLayout
    device: torch.device
    rank: int
    """Rank of this process among all processes."""
    world_size: int
    """Number of all processes."""
    groups: ProcessGroupCollection
    """The groups of this process by axis: `tp`, `pp`, `cp`, `dp`, and `dp_cp` for both."""
    store: dist.Store
    """Keys and values that all processes share."""

    @property
    def leads_group(self) -> bool:
        """Whether this process speaks for its copy of the model.

        It is the first of the copy's tensor-, pipeline- and context-parallel ranks.
        """
        return bool(self.groups.tp.rank() == self.groups.pp.rank() == self.groups.cp.rank() == 0)

    @property
    def data_parallel_size(self) -> int:
        """Number of copies of the model."""
        return int(self.groups.dp.size())

    @property
    def data_parallel_rank(self) -> int:
        """Number of the copy of the model that this process belongs to, from 0."""
        return int(self.groups.dp.rank())

    @property
    def is_first_stage(self) -> bool:
        """Whether this process is on the first pipeline stage, which has the embedding."""
        return int(self.groups.pp.rank()) == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this process is on the last pipeline stage, which has the output layer."""
        return int(self.groups.pp.rank()) == int(self.groups.pp.size()) - 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes what only one process may write."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until all processes have come here."""
        dist.barrier()

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Returns the `value` of rank `source`, any object that can be pickled, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's `value`, in rank order, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def process_rank() -> int:
    """Returns this process's rank as torchrun's environment says it; 0 where it says none."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def start_runtime(
    layout: ParallelLayout | None = None,
    *,
    seed: int = 1234,
    timeout_seconds: float = 1800,
    threads: int | None = None,
) -> Iterator[Runtime]:
    """Joins the processes that torchrun started, and yields this process's runtime.

    Without torchrun the process runs alone. Sets device, process groups and seeds; at the end the
    groups are dissolved. Raises InputError where the layout does not fill the processes.

    Args:
        layout: How a model is spread over the processes; by default each holds a whole one.
        seed: Of torch's and megatron-core's random numbers.
        timeout_seconds: How long a process waits for the others before it gives up.
        threads: Number of torch's CPU threads; by default torch's own choice.
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
    """Divides processes that have joined already into the layout's groups; yields the runtime.

    At the end the groups are dissolved, and the processes stay joined.
    """
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection

    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor_parallel,
            pipeline_model_parallel_size=layout.pipeline_parallel,
            context_parallel_size=layout.context_parallel,
            hierarchical_context_parallel_sizes=_two_levels(layout),
            # A second set of groups beside NCCL's; on a CPU all groups are gloo's already.
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
    """Returns the sizes of the inner and outer context-parallel groups; None for one level."""
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
    """Joins the processes that torchrun started, or makes a world of one; returns their store."""
    on_cpu = device.type == "cpu"
    # gloo serves objects and CPU tensors on GPU machines too
    backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if world_size == 1 and "MASTER_ADDR" not in os.environ:
        # A store in memory: a process alone needs no port, so many can run on one machine.
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
