"""Process groups, device and seeds of a process; the CPU as a platform of megatron-core."""

from megatron_longrope.runtime.layout import ParallelLayout
from megatron_longrope.runtime.runtime import Runtime, process_rank, start_runtime

__all__ = ["ParallelLayout", "Runtime", "process_rank", "start_runtime"]
