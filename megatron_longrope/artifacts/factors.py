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
"""Beyond it q·k would be multiplied by more than 100: no published method comes near."""

Positive = Annotated[float, Field(gt=0, strict=True)]


class FactorOrigin(StrictConfig):
    """Where factors came from: method, model, data, their score there (loss in nats per token),
    source, and the searcher that found them.

    `scored` says what the score is of where that is not text alone: `text, answers`.
    """

    method: str
    model: str | None = None
    data: str | None = None
    score: float | None = None
    source: str | None = None
    searcher: str | None = None
    scored: str | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what files of before did not have, where it says nothing: what was made from
        them is told by their content."""
        values: dict[str, Any] = handler(self)
        later = ("searcher", "scored")
        return {key: v for key, v in values.items() if v is not None or key not in later}


class RopeFactors(StrictConfig):
    """Pair i turns by n·θ_i for n < start_tokens and by n·θ_i/λ_i from there on (LongRoPE, arXiv
    2402.13753, eq. 2).

    `rescale` holds λ, one per pair. cos and sin are multiplied by `attention_factor` t, so q·k by
    t². Lengths are in tokens. `hf_inverse_frequencies` are transformers' own float32 frequencies
    [head_dim/2] where λ came from one of its formulas whose rounding λ alone cannot repeat; only
    `angle_precision=hf` reads them.
    """

    rescale: tuple[Positive, ...]
    start_tokens: int = Field(default=0, ge=0)
    attention_factor: float = Field(default=1.0, gt=0, le=MAX_ATTENTION_FACTOR, strict=True)
    original_length: Length
    target_length: Length
    base: float = Field(gt=1)
    head_dim: int = Field(ge=4, multiple_of=2)
    origin: FactorOrigin
    hf_inverse_frequencies: tuple[Positive, ...] | None = None

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
            # float32 rounding; llama3's blend of kept and interpolated parts cancels, hence the
            # second term
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
        """s: target length / original length."""
        return self.target_length / self.original_length

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a validated copy; new λ, base or head_dim drop transformers' float32 frequencies
        of the old ones."""
        changes = dict(update or {})
        if changes.keys() & {"rescale", "base", "head_dim"}:
            changes.setdefault("hf_inverse_frequencies", None)
        return type(self).model_validate(self.model_dump() | changes)


class FactorRange(StrictConfig):
    """Factors for inputs of at most `up_to` tokens; None: of any length."""

    up_to: Length | None
    factors: RopeFactors


class FactorSet(StrictConfig):
    """Factors by input length: ranges ascending in `up_to`; the last one serves everything longer
    too."""

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
        """The rotary geometry all ranges share."""
        return self.ranges[0].factors.geometry

    @property
    def target_length(self) -> int:
        """The length in tokens the last range was made for."""
        return self.ranges[-1].factors.target_length
