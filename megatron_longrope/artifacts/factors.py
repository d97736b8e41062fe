"""Rescale factors of rotary embeddings, and sets of them by input length."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.config import Length, StrictConfig

if TYPE_CHECKING:
    from typing import Self

MAX_ATTENTION_FACTOR = 10.0
"""The largest t allowed, which multiplies q·k by 100: no published method comes near it."""

Positive = Annotated[float, Field(gt=0, strict=True)]
"""A positive number; text that looks like one is refused."""


class FactorOrigin(StrictConfig):
    """Where factors came from."""

    method: str
    """The scaling method or the searcher that made them."""
    model: str | None = None
    """The model that they were made for."""
    data: str | None = None
    """The documents that they were searched on."""
    score: float | None = None
    """Their loss on these documents, in nats per token."""
    source: str | None = None
    """Where they were published, or how they were put together."""
    searcher: str | None = None
    """The searcher that found them."""
    scored: str | None = None
    """The parts of the loss behind `score` where it is a mixture, such as `text, answers`."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Returns the values without later fields that are None.

        Stages are told apart by the content of factor files, which must stay what it was.
        """
        values: dict[str, Any] = handler(self)
        later = ("searcher", "scored")
        return {key: v for key, v in values.items() if v is not None or key not in later}


class RopeFactors(StrictConfig):
    """Everything that determines a model's rotary embedding at one range of input lengths.

    At position n pair i turns by n·θ_i for n < n̂ and by n·θ_i/λ_i from there on, with
    θ_i = base^(−2i/head_dim) (LongRoPE, arXiv 2402.13753, eq. 2).
    """

    rescale: tuple[Positive, ...]
    """Rescale factors λ_i, one per pair, [head_dim/2]."""
    start_tokens: int = Field(default=0, ge=0)
    """n̂, the number of first positions that keep their original angle."""
    attention_factor: float = Field(default=1.0, gt=0, le=MAX_ATTENTION_FACTOR, strict=True)
    """t, by which cos and sin are multiplied, and so q·k by t²."""
    original_length: Length
    """Pretrained window L, in tokens."""
    target_length: Length
    """Input length that the factors were made for, in tokens."""
    base: float = Field(gt=1)
    """Rotary base."""
    head_dim: int = Field(ge=4, multiple_of=2)
    """Dimensions of a head, all of which are rotated."""
    origin: FactorOrigin
    """Where the factors came from."""
    hf_inverse_frequencies: tuple[Positive, ...] | None = None
    """The float32 frequencies of transformers, [head_dim/2], where its formula rounds otherwise
    than λ gives. Only `angle_precision=hf` reads them."""

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        pairs = self.head_dim // 2
        if len(self.rescale) != pairs:
            raise ValueError(
                f"head_dim {self.head_dim} needs {pairs} rescale factors, got {len(self.rescale)}"
            )
        if self.hf_inverse_frequencies is not None:
            self._check_hf_frequencies(self.hf_inverse_frequencies)
        return self

    def _check_hf_frequencies(self, frequencies: tuple[float, ...]) -> None:
        if len(frequencies) != len(self.rescale):
            raise ValueError(
                f"{len(self.rescale)} pairs need as many hf_inverse_frequencies, got "
                f"{len(frequencies)}"
            )
        for i, (frequency, rescale) in enumerate(zip(frequencies, self.rescale, strict=True)):
            original = self.base ** (-2 * i / self.head_dim)
            exact = original / rescale
            # Rounding to float32 is relative to the result. The second term is for llama3: where
            # its blend subtracts numbers of the size of θ_i, their rounding remains.
            if abs(frequency - exact) > 1e-5 * exact + 5e-7 * original:
                raise ValueError(
                    f"hf_inverse_frequencies[{i}]={frequency} is not what λ gives: {exact}"
                )

    @property
    def geometry(self) -> RopeGeometry:
        """The rotary geometry these factors are for."""
        return RopeGeometry(
            base=self.base, head_dim=self.head_dim, original_length=self.original_length
        )

    @property
    def is_monotone(self) -> bool:
        """Whether λ never decreases from pair to pair; several published sets do."""
        return all(a <= b for a, b in pairwise(self.rescale))

    @property
    def is_identity(self) -> bool:
        """Whether these factors leave rotary embedding and attention as they were."""
        return self.attention_factor == 1.0 and all(rescale == 1.0 for rescale in self.rescale)

    @property
    def scale(self) -> float:
        """Scale s, the target length over the original length."""
        return self.target_length / self.original_length

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy with the values of `update`, validated (pydantic's own copy is not)."""
        changes = dict(update or {})
        # the float32 frequencies belong to the old values
        if changes.keys() & {"rescale", "base", "head_dim"}:
            changes.setdefault("hf_inverse_frequencies", None)
        return type(self).model_validate(self.model_dump() | changes)


class FactorRange(StrictConfig):
    """Factors for inputs of at most `up_to` tokens, or of any length where that is None."""

    up_to: Length | None
    factors: RopeFactors


class FactorSet(StrictConfig):
    """Factors by input length: ranges that ascend in `up_to`, the last one for all longer inputs.

    >>> from megatron_longrope.rope import LongRope, RopeGeometry
    >>> method = LongRope(short=(1.0, 1.5), long=(1.0, 8.0), scale=8)
    >>> factor_set = method.factor_set(RopeGeometry(base=10000.0, head_dim=4, original_length=64))
    >>> factor_set.for_length(64).rescale, factor_set.for_length(65).rescale
    ((1.0, 1.5), (1.0, 8.0))
    """

    ranges: tuple[FactorRange, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        limits = [entry.up_to for entry in self.ranges]
        bounded = [limit for limit in limits if limit is not None]
        if None in limits[:-1] or any(a >= b for a, b in pairwise(bounded)):
            raise ValueError(
                f"ranges ascend and only the last may have no limit, got up_to {limits}"
            )
        if any(entry.factors.geometry != self.geometry for entry in self.ranges):
            raise ValueError("all ranges need the same base, head_dim and original_length")
        return self

    @classmethod
    def single(cls, factors: RopeFactors) -> Self:
        """Returns the set that uses `factors` at every length."""
        return cls(ranges=(FactorRange(up_to=None, factors=factors),))

    def for_length(self, length: int) -> RopeFactors:
        """Returns the factors for an input of `length` tokens."""
        for entry in self.ranges:
            if entry.up_to is None or length <= entry.up_to:
                return entry.factors
        return self.ranges[-1].factors

    @property
    def geometry(self) -> RopeGeometry:
        """The rotary geometry that all ranges share."""
        return self.ranges[0].factors.geometry

    @property
    def target_length(self) -> int:
        """The input length in tokens that the last range was made for."""
        return self.ranges[-1].factors.target_length
