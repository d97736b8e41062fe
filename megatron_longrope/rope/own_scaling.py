"""What a model arrives with: its own rotary scaling, and the window that was made for.

Llama 3.1, Phi-3 or Qwen2.5 with YaRN come with factors of their own, and so does a checkpoint that
was fine-tuned or searched here. Such a model is a fine-tuned model, whatever it is extended by:
its factors are λ_ft, and λ = 1 would be another model. Whoever has to know asks here.
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
        """Returns what a HF model config (`config.json` as a dictionary) says of its scaling.

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
        """Whether the model arrives with factors of its own: some λ or temperature is not 1."""
        return not all(entry.factors.is_identity for entry in self.factor_set.ranges)

    @property
    def geometry(self) -> RopeGeometry:
        """Base, head size and pretrained window, which λ counts from."""
        return self.factor_set.geometry

    @property
    def window(self) -> int:
        """Longest input in tokens that the model is made for as it arrives."""
        return max(self.factor_set.target_length, self.geometry.original_length)

    @property
    def tuned(self) -> RopeFactors | None:
        """λ_ft: the factors of its longest inputs, made for the whole window; None where the model
        arrives unscaled."""
        if not self.is_scaled:
            return None
        return self.factor_set.ranges[-1].factors.model_copy(update={"target_length": self.window})

    @property
    def short_ranges(self) -> tuple[FactorRange, ...]:
        """Ranges with factors of their own below the longest one, such as LongRoPE's short set;
        none where the model arrives unscaled."""
        return self.factor_set.ranges[:-1] if self.is_scaled else ()

    @property
    def label(self) -> str:
        """What tables call the model left as it is: `none` (no scaling) or `model` (its own)."""
        return AS_IT_IS if self.is_scaled else UNSCALED

    def for_length(self, length: int) -> RopeFactors:
        """Returns the factors that the model as it arrives uses for an input of `length` tokens."""
        return self.factor_set.for_length(length)

    def up_to_window(self, factors: RopeFactors) -> FactorSet:
        """Returns the set that uses the model's own factors up to its window and `factors`
        beyond."""
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
