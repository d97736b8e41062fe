"""LongRoPE factors as a scaling method: a list of λ within the window, another beyond it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from megatron_longrope.artifacts.factors import (
    MAX_ATTENTION_FACTOR,
    FactorRange,
    FactorSet,
    RopeFactors,
)
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.rope.hf_reading import HfReading, HfRopeType
from megatron_longrope.rope.hf_settings import ORIGINAL_KEY
from megatron_longrope.rope.methods.base import METHODS, RopeMethod

if TYPE_CHECKING:
    from typing import Self

_LISTS = frozenset({"short_factor", "long_factor"})
_MSCALES = frozenset({"short_mscale", "long_mscale"})


class LongRope(RopeMethod):
    """Searched λ: `short` for inputs up to the original length L, `long` for longer ones.

    The method of LongRoPE (arXiv 2402.13753), which transformers calls `longrope`. It has no start
    tokens. `attention_factor` None means √(1 + ln s / ln L) with s = `scale`, for short inputs too.
    """

    name: ClassVar[str] = "longrope"
    is_closed_form: ClassVar[bool] = False
    hf: ClassVar[HfRopeType | None] = HfRopeType(
        "longrope",
        keys=_LISTS | _MSCALES | {"factor", "attention_factor", ORIGINAL_KEY},
        required=_LISTS,
    )

    short: tuple[float, ...]
    long: tuple[float, ...]
    scale: float = Field(ge=1)
    attention_factor: float | None = Field(default=None, gt=0, le=MAX_ATTENTION_FACTOR)

    @classmethod
    def from_hf(cls, reading: HfReading) -> Self:
        """Returns the method of a HF config.

        Raises InputError for lists that do not fit the model, and where transformers 4 and 5 would
        compute different attention factors.
        """
        for key in sorted(_LISTS, reverse=True):
            _check_list(key, reading)
        attention_factor = reading.parameters.get("attention_factor")
        _check_mscales(reading, attention_factor)
        factor, ratio = reading.factor, reading.length_ratio
        if factor is not None and attention_factor is None and abs(factor - ratio) > 1e-6 * ratio:
            rule = (
                f"max_position_embeddings/{ORIGINAL_KEY} is {ratio:g}, and transformers 4 and 5 "
                "disagree which one counts"
            )
            raise InputError("factor", factor, f"{rule}: write attention_factor into the config")
        values = {
            "short": reading.parameters["short_factor"],
            "long": reading.parameters["long_factor"],
            "scale": ratio if ratio > 1 else (factor or 1.0),
            "attention_factor": attention_factor,
        }
        return build_config(cls, values, "the HF config's longrope")

    def to_hf(self, geometry: RopeGeometry) -> dict[str, Any]:
        """Returns both lists with everything that transformers 4 or 5 reads."""
        return {
            "rope_type": "longrope",
            "short_factor": list(self.short),
            "long_factor": list(self.long),
            ORIGINAL_KEY: geometry.original_length,
            "attention_factor": self._resolved_attention_factor(geometry),
            "factor": self.scale,
        }

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors for inputs of `length` tokens, by default of the target length."""
        window = geometry.original_length
        is_short = length is not None and length <= window
        return self.make_factors(
            geometry,
            self.short if is_short else self.long,
            window if is_short else round(self.scale * window),
            attention_factor=self._resolved_attention_factor(geometry),
        )

    def factor_set(self, geometry: RopeGeometry, length: int | None = None) -> FactorSet:
        """Returns `short` up to the pretrained window and `long` beyond it."""
        window = geometry.original_length
        short = FactorRange(up_to=window, factors=self.factors(geometry, window))
        return FactorSet(ranges=(short, FactorRange(up_to=None, factors=self.factors(geometry))))

    def _resolved_attention_factor(self, geometry: RopeGeometry) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return longrope_attention_factor(self.scale, geometry.original_length)


def longrope_attention_factor(scale: float, original_length: int) -> float:
    """Returns t = √(1 + ln s / ln L) for a window of L tokens extended s times; 1 for s ≤ 1.

    Source: Microsoft's code (microsoft/LongRoPE) and transformers' `longrope`.

    >>> longrope_attention_factor(scale=8, original_length=512)  # ln 8 / ln 512 = 1/3
    1.1547005383792515
    """
    return 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original_length))


def _check_mscales(reading: HfReading, attention_factor: object) -> None:
    """Raises InputError where the keys of vLLM would give another attention factor."""
    for key in sorted(_MSCALES & reading.parameters.keys(), reverse=True):
        if reading.parameters[key] != attention_factor:
            rule = f"vLLM's word for attention_factor, which is {attention_factor}"
            raise InputError(key, reading.parameters[key], rule)


def _check_list(key: str, reading: HfReading) -> None:
    """Raises InputError where the list at `key` does not hold one number per pair."""
    values, pairs = reading.parameters[key], reading.geometry.num_pairs
    is_list = isinstance(values, list | tuple) and not any(
        isinstance(value, str | bool) for value in values
    )
    if not is_list or len(values) != pairs:
        raise InputError(
            key, values, f"head_dim {reading.geometry.head_dim} needs a list of {pairs} numbers"
        )


METHODS.register(LongRope.name, LongRope)
