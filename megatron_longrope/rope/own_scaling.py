"""The rotary scaling that a model arrives with, and the window which that scaling is made for.

Llama 3.1, Phi-3 or Qwen2.5 with YaRN come with factors of their own, and so does a checkpoint that
was fine-tuned or searched here. Such a model is a fine-tuned model, whichever method extends it:
its factors are λ_ft of the second search (arXiv 2402.13753), and with λ = 1 it would be another
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_longrope.artifacts.factors import FactorRange, FactorSet, RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.artifacts.rows import AS_IT_IS, UNSCALED
from megatron_longrope.errors import InputError
from megatron_longrope.rope.hf import factor_set_from_hf, method_from_hf


@dataclass(frozen=True)
class OwnScaling:
    """The factors of a model as it arrives, by input length.

    >>> from megatron_longrope.rope import NoScaling, RopeGeometry, Yarn
    >>> geometry = RopeGeometry(base=10000.0, head_dim=64, original_length=4096)
    >>> OwnScaling(Yarn(scale=4).factor_set(geometry)).window
    16384
    >>> OwnScaling(NoScaling().factor_set(geometry)).tuned is None
    True
    """

    factor_set: FactorSet

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> OwnScaling:
        """Returns the scaling that a Hugging Face model config says, `config.json` as a dictionary.

        Raises InputError for dynamic NTK, whose factors follow the input length: there is no set
        of factors to build on.
        """
        method, _ = method_from_hf(config)
        if method.follows_length:
            raise InputError(
                "rope_type",
                method.hf.name if method.hf else method.name,
                "its factors follow the input length, so that there are none to build on: fix them "
                "at one length (`longrope convert import --dynamic-at N`) and export that model",
            )
        return cls(factor_set_from_hf(config))

    @property
    def is_scaled(self) -> bool:
        """Whether the model arrives with factors of its own: a λ or attention factor is not 1."""
        return not all(entry.factors.is_identity for entry in self.factor_set.ranges)

    @property
    def geometry(self) -> RopeGeometry:
        """Geometry of the model: base, head size and the pretrained window, which λ counts from."""
        return self.factor_set.geometry

    @property
    def window(self) -> int:
        """Longest input in tokens that the model is made for as it arrives."""
        return max(self.factor_set.target_length, self.geometry.original_length)

    @property
    def tuned(self) -> RopeFactors | None:
        """The fine-tuned factors λ_ft, made for the whole window; None if the model is unscaled.

        They are those of the longest inputs.
        """
        if not self.is_scaled:
            return None
        return self.factor_set.ranges[-1].factors.model_copy(update={"target_length": self.window})

    @property
    def short_ranges(self) -> tuple[FactorRange, ...]:
        """Ranges of shorter inputs with factors of their own, such as LongRoPE's short set.

        There are none where the model arrives unscaled.
        """
        return self.factor_set.ranges[:-1] if self.is_scaled else ()

    @property
    def label(self) -> str:
        """Name in tables of the model left as it is: `none` (no scaling) or `model` (its own)."""
        return AS_IT_IS if self.is_scaled else UNSCALED

    def for_length(self, length: int) -> RopeFactors:
        """Returns the factors that the model as it arrives uses for an input of `length` tokens."""
        return self.factor_set.for_length(length)

    def up_to_window(self, factors: RopeFactors) -> FactorSet:
        """Returns the model's own factors up to its window, and `factors` beyond."""
        short = (
            entry
            for entry in self.short_ranges
            if entry.up_to is not None and entry.up_to < self.window
        )
        own = FactorRange(up_to=self.window, factors=self.for_length(self.window))
        return FactorSet(ranges=(*short, own, FactorRange(up_to=None, factors=factors)))

    def describe(self) -> str:
        """Returns the scaling in a few words, such as `longrope, 2 sets by input length`."""
        if not self.is_scaled:
            return "no scaling"
        last = self.factor_set.ranges[-1].factors
        num_sets = len(self.factor_set.ranges)
        sets = f", {num_sets} sets by input length" if num_sets > 1 else ""
        return f"{last.origin.method}{sets}"
