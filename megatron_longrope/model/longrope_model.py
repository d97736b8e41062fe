"""This process's share of a model: chunks of consecutive layers, and the factors in force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_longrope.errors import InputError
from megatron_longrope.model.engine.choice import Backend
from megatron_longrope.model.engine.settings import Recompute
from megatron_longrope.model.gpt import LongRopeGPT, OutputKind
from megatron_longrope.model.shape import ModelShape
from megatron_longrope.rope import AnglePrecision, FactorSet, RopeFactors, RopeGeometry
from megatron_longrope.runtime import Runtime


@dataclass
class LongRopeModel:
    """This process's share of a model, and the factors in force.

    It is not a module: with an interleaved pipeline a process holds several, its chunks.
    """

    shape: ModelShape
    runtime: Runtime
    chunks: list[LongRopeGPT]
    """This process's modules, in the order in which a batch passes through them.

    There is one, or `virtual_pipeline` of them.
    """
    factor_set: FactorSet
    backend: Backend
    angle_precision: AnglePrecision = "float64"

    def set_factors(self, factors: FactorSet | RopeFactors) -> None:
        """Puts λ, n̂ and the attention factor in force together, from the next batch on.

        Raises InputError for factors of another head_dim or rotary base.

        >>> from megatron_longrope.rope import Yarn
        >>> before = model.factor_set
        >>> model.set_factors(Yarn(scale=4.0).factors(model.geometry))
        >>> model.set_factors(before)
        """
        factor_set = FactorSet.single(factors) if isinstance(factors, RopeFactors) else factors
        for part in factor_set.ranges:
            if part.factors.head_dim != self.shape.head_dim:
                raise InputError(
                    "factors.head_dim",
                    part.factors.head_dim,
                    f"the model's is {self.shape.head_dim}",
                )
            if part.factors.base != self.shape.rope_base:
                raise InputError(
                    "factors.base", part.factors.base, f"the model's is {self.shape.rope_base}"
                )
        self.factor_set = factor_set

    def set_output(self, kind: OutputKind) -> None:
        """Chooses what the last chunk of the model returns."""
        for chunk in self.chunks:
            chunk.output_kind = kind

    def train(self, mode: bool = True) -> None:
        """Puts every chunk in training mode, or in evaluation mode."""
        for chunk in self.chunks:
            chunk.train(mode)

    @contextmanager
    def running(self, *, training: bool, output: OutputKind) -> Iterator[None]:
        """Puts the model in training or evaluation mode and chooses its output, for a `with` block.

        Afterwards both are as before.
        """
        was_training, was_output = self.chunks[0].training, self.output_kind
        self.train(training)
        self.set_output(output)
        try:
            yield
        finally:
            self.train(was_training)
            self.set_output(was_output)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yields this process's weights."""
        for chunk in self.chunks:
            yield from chunk.parameters()

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yields this process's weights with their names in the whole model.

        Layers are counted from the first of the whole model.
        """
        for chunk in self.chunks:
            for name, parameter in chunk.named_parameters():
                yield chunk.global_name(name), parameter

    @property
    def stage(self) -> LongRopeGPT:
        """The only chunk of this process; stages must not be interleaved."""
        (stage,) = self.chunks
        return stage

    @property
    def output_kind(self) -> OutputKind:
        """Kind of output that `set_output` chose."""
        return self.chunks[0].output_kind

    @property
    def config(self) -> TransformerConfig:
        """The config of megatron-core, one object for all chunks."""
        config: TransformerConfig = self.chunks[0].config
        return config

    @property
    def recompute(self) -> Recompute:
        """Which activations a backward pass computes again."""
        return cast(Recompute, self.config.recompute_granularity or "none")

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return next(self.parameters()).dtype

    @property
    def geometry(self) -> RopeGeometry:
        """Rotary base, head_dim and original length of the model."""
        return RopeGeometry(
            base=self.shape.rope_base,
            head_dim=self.shape.head_dim,
            original_length=self.shape.context_length,
        )
