"""How one model is spread over processes, with every divisibility checked in one place."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveInt

from megatron_longrope.config import StrictConfig
from megatron_longrope.errors import InputError

ContextExchange = Literal["auto", "ring", "all_gather"]
"""How K/V reach other context-parallel ranks with the `torch` engine."""


class ParallelLayout(StrictConfig):
    """Sizes of the mesh axes; the data-parallel size is what they leave of the processes.

    >>> ParallelLayout(tensor_parallel=2, context_parallel=2).data_parallel(world_size=8)
    2
    """

    tensor_parallel: PositiveInt = 1
    sequence_parallel: bool = False
    pipeline_parallel: PositiveInt = 1
    virtual_pipeline: PositiveInt = 1
    """Number of runs of layers that each pipeline process holds, interleaved.

    More of them shorten the pipeline's idle time at both ends of a step.
    """
    context_parallel: PositiveInt = 1
    context_exchange: ContextExchange = "auto"
    """How K/V reach other context-parallel ranks with the `torch` engine.

    `auto` gathers them where the sequence is short, and sends them around a ring elsewhere.
    """
    context_parallel_a2a: PositiveInt = 1
    """Size of the inner all-to-all groups under Transformer Engine's cp_comm_type=a2a+p2p.

    1: there is one level only.
    """

    @property
    def model_parallel(self) -> int:
        """Number of processes that hold one copy of the model and share one sequence."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def is_interleaved(self) -> bool:
        """Whether pipeline stages are interleaved."""
        return self.virtual_pipeline > 1

    @property
    def model_chunks(self) -> int:
        """Number of chunks, runs of consecutive layers, that the model is cut into.

        Chunk c lies on pipeline rank c mod pipeline_parallel.
        """
        return self.pipeline_parallel * self.virtual_pipeline

    @property
    def micro_batch_divisor(self) -> int:
        """Number that the micro-batches of one run of the schedule must be a multiple of."""
        return self.pipeline_parallel if self.is_interleaved else 1

    @property
    def sequence_divisor(self) -> int:
        """Number that the tokens of every sequence must be a multiple of.

        Context parallelism cuts a sequence in two equal chunks per rank. Sequence parallelism cuts
        each rank's share, both chunks together, once more over the tensor-parallel ranks.
        """
        if self.context_parallel == 1:
            return self.tensor_parallel if self.sequence_parallel else 1
        per_rank = math.lcm(2, self.tensor_parallel) if self.sequence_parallel else 2
        return self.context_parallel * per_rank

    def data_parallel(self, world_size: int) -> int:
        """Returns the number of copies of the model on `world_size` processes.

        Raises InputError where whole copies do not fill the processes exactly.
        """
        if self.is_interleaved and self.pipeline_parallel == 1:
            raise InputError(
                "virtual_pipeline", self.virtual_pipeline, "needs pipeline_parallel above 1, got 1"
            )
        self._divides(
            "context_parallel",
            self.context_parallel,
            "context_parallel_a2a",
            self.context_parallel_a2a,
        )
        self._divides(
            "processes",
            world_size,
            "tensor_parallel·pipeline_parallel·context_parallel",
            self.model_parallel,
        )
        return world_size // self.model_parallel

    def check_model(
        self, *, num_layers: int, num_heads: int, num_kv_heads: int, ffn_hidden_size: int
    ) -> None:
        """Raises InputError where a model of these sizes cannot be cut by this layout."""
        self._divides(
            "num_layers", num_layers, "pipeline_parallel·virtual_pipeline", self.model_chunks
        )
        self._divides("num_heads", num_heads, "tensor_parallel", self.tensor_parallel)
        self._divides("num_kv_heads", num_kv_heads, "tensor_parallel", self.tensor_parallel)
        self._divides("ffn_hidden_size", ffn_hidden_size, "tensor_parallel", self.tensor_parallel)
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise InputError("sequence_parallel", True, "needs tensor_parallel above 1, got 1")

    def check_sequence(self, length: int) -> None:
        """Raises InputError where a sequence of `length` tokens cannot be cut by this layout."""
        if length % self.sequence_divisor:
            raise InputError(
                "sequence_length",
                length,
                f"context_parallel={self.context_parallel} with "
                f"tensor_parallel={self.tensor_parallel} "
                f"needs a sequence length divisible by {self.sequence_divisor}",
            )

    def check_batch(self, global_batch_size: int, micro_batch_size: int, data_parallel: int) -> int:
        """Returns the number of micro-batches per step on each data-parallel rank.

        Raises InputError where the global batch cannot be divided like that.
        """
        together = micro_batch_size * data_parallel
        self._divides(
            "global_batch_size", global_batch_size, "micro_batch_size·data_parallel", together
        )
        if self.is_interleaved:
            self._divides(
                "global_batch_size",
                global_batch_size,
                "micro_batch_size·data_parallel·pipeline_parallel "
                f"(virtual_pipeline={self.virtual_pipeline} "
                "takes micro-batches in groups of pipeline_parallel)",
                together * self.micro_batch_divisor,
            )
        return global_batch_size // together

    @staticmethod
    def _divides(field: str, value: int, by: str, divisor: int) -> None:
        if value % divisor:
            raise InputError(field, value, f"must be divisible by {by}={divisor}")
