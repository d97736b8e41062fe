"""The choice of the engine: settings, layout and machine checked together before building."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.errors import InputError
from megatron_longrope.model.engine.rules import check_combination, max_fused_rope_tokens
from megatron_longrope.model.engine.settings import (
    FP8_BLOCK,
    BackendSettings,
    Combination,
    Communication,
    Fp8Recipe,
    Purpose,
    Recompute,
)
from megatron_longrope.model.shape import ModelShape
from megatron_longrope.runtime import ParallelLayout
from megatron_longrope.runtime.gpu_stack import Engine, GpuStack, choose_engine, gpu_stack
from megatron_longrope.runtime.te_environment import prepare_transformer_engine


@dataclass(frozen=True)
class Backend:
    """The engine that a model is built with, checked against layout, shape and machine.

    It says what goes into megatron-core's config, and which batches the model takes.
    """

    engine: Engine
    reason: str
    """Why it is this engine, in one line."""
    settings: BackendSettings
    token_multiple: int = 1
    """The number of tokens of every batch, over all processes, is a multiple of this."""
    max_tokens: int | None = None
    """The number of tokens of a batch, over all processes, is at most this; None: no limit."""

    @property
    def communication(self) -> Communication:
        """How Transformer Engine's context parallelism communicates; `auto` is p2p."""
        return "p2p" if self.settings.cp_comm_type == "auto" else self.settings.cp_comm_type

    def config_settings(self, layout: ParallelLayout) -> dict[str, Any]:
        """Returns the fields of megatron-core's TransformerConfig that depend on the engine."""
        if self.engine != "transformer-engine":
            return {}
        values: dict[str, Any] = {}
        if layout.context_parallel > 1:
            values["cp_comm_type"] = self.communication
        if self.settings.fp8 != "off":
            # hybrid: E4M3 for activations and weights, E5M2 for gradients, whose range is wider.
            # Scaled block by block, gradients fit E4M3 too.
            by_tensor = self.settings.fp8 in ("delayed", "tensorwise")
            values |= {
                "fp8": "hybrid" if by_tensor else "e4m3",
                "fp8_recipe": self.settings.fp8,
                "fp8_dot_product_attention": self.settings.fp8_attention,
            }
        return values

    def prepare(self) -> None:
        """Sets the environment variables that the engine reads.

        Raises InputError where a person has set the opposite.
        """
        if self.engine == "transformer-engine":
            backward = self.settings.fp8_attention_backward if self.settings.fp8_attention else None
            prepare_transformer_engine(fp8_attention_backward=backward)

    def check_searching(self) -> None:
        """Raises InputError where FP8 may rank a search's candidates otherwise than BF16 does."""
        if self.settings.fp8 != "off" and not self.settings.fp8_scoring:
            rule = (
                "may reorder candidates: show that it does not with benchmarks/fp8_ranking.py, "
                "then set fp8_scoring"
            )
            raise InputError("fp8", self.settings.fp8, rule)

    def padded_total(self, tokens: int) -> int:
        """Returns how many tokens a batch of `tokens` is filled up to."""
        return -(-tokens // self.token_multiple) * self.token_multiple

    def check_batch(self, batch: DocumentBatch) -> None:
        """Raises InputError for a batch this engine was not built for."""
        tokens = int(batch.cu_seqlens[-1])
        if tokens % self.token_multiple:
            rule = (
                f"FP8 ({self.settings.fp8}) under this layout needs a multiple of "
                f"{self.token_multiple} tokens"
            )
            raise InputError("sequence_length", tokens, rule)
        if self.max_tokens is not None and tokens > self.max_tokens:
            rule = (
                f"fused_rope takes at most {self.max_tokens} tokens under this layout; set it to "
                "false"
            )
            raise InputError("sequence_length", tokens, rule)
        if not self.settings.packed and batch.num_documents > 1:
            raise InputError(
                "packed", False, f"a row holds {batch.num_documents} documents; set it to true"
            )


def resolve_backend(
    settings: BackendSettings,
    shape: ModelShape,
    layout: ParallelLayout,
    *,
    dtype: torch.dtype,
    recompute: Recompute = "none",
    purpose: Purpose = "training",
    sliding_window: bool = False,
    sequence_length: int | None = None,
    stack: GpuStack | None = None,
) -> Backend:
    """Returns the engine to build with; raises InputError for what does not go together.

    Args:
        settings: What is asked of the engine.
        shape: Sizes and options of the model.
        layout: How the model is spread over processes.
        dtype: Of the weights.
        recompute: Which activations the backward pass computes again.
        purpose: Whether the model is to be trained or only scores.
        sliding_window: Whether any layer has a sliding window.
        sequence_length: Tokens of the longest row over all processes, where known already.
        stack: What the machine has; by default it is looked at.
    """
    stack = stack or gpu_stack()
    if settings.engine == "auto":
        choice = choose_engine(stack, dtype, layout.context_parallel, shape.head_dim)
        engine, reason = choice.engine, choice.reason
    else:
        engine, reason = settings.engine, "asked for"
    combination = Combination(
        settings, engine, shape, layout, dtype, recompute, purpose, sliding_window, sequence_length
    )
    check_combination(combination, stack)
    limit = max_fused_rope_tokens(combination) if settings.fused_rope else None
    return Backend(engine, reason, settings, token_multiple(settings.fp8, layout), limit)


def token_multiple(fp8: Fp8Recipe, layout: ParallelLayout) -> int:
    """Returns what the tokens of a batch must be a multiple of under FP8; 1 without it.

    Under sequence parallelism each process quantizes its own share of the sequence.
    """
    if fp8 == "off":
        return 1
    shares = layout.context_parallel * (layout.tensor_parallel if layout.sequence_parallel else 1)
    return math.lcm(FP8_BLOCK[fp8] * shares, layout.sequence_divisor)
