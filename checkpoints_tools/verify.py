"""Compares two models of any format tensor by tensor, and by the logits they compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from checkpoints_tools.common.sides import Side, opened_side
from checkpoints_tools.hf.folder import bits_equal
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape, document_logits
from megatron_longrope.rope import FactorSet
from megatron_longrope.runtime import Runtime

LOGITS_TOKENS = 256
_LOGITS_SEED = 20240221
_CHUNK_VALUES = 4 << 20
Verdict = Literal["equal", "other dtype", "differs", "missing"]
"""other dtype: equal numbers stored in different dtypes. missing: present on one side only."""


@dataclass(frozen=True)
class Comparison:
    """One row of the comparison: a tensor, the shape, the RoPE factors or the logits."""

    name: str
    a: str
    """What the first model has, in words."""
    b: str
    """What the second model has, in words."""
    equal: bool
    """Whether the two are equal in every bit."""
    difference: float | None
    """Largest absolute difference of two numbers; None where the sizes differ."""

    @property
    def verdict(self) -> Verdict:
        """The row's result in a word; only "equal" counts as equal."""
        if self.equal:
            return "equal"
        if "absent" in (self.a, self.b):
            return "missing"
        return "other dtype" if self.difference == 0.0 and self.a != self.b else "differs"


def verify(
    a: Path | str,
    b: Path | str,
    *,
    logits: bool = False,
    runtime: Runtime | None = None,
    tokens: int = LOGITS_TOKENS,
) -> list[Comparison]:
    """Returns one row for the shape, the factors and each tensor of two models, compared by bits.

    A weight that one model lacks is a row too. Raises InputError for what is no model or damaged.

    Args:
        a: HF folder, Megatron checkpoint, GGUF file or run directory.
        b: the other model, likewise.
        logits: whether both models also score the same random tokens in float32.
        runtime: a one-process runtime, needed for `logits` alone.
        tokens: number of random tokens to score.
    """
    with ExitStack() as stack:
        left, right = (stack.enter_context(opened_side(path)) for path in (a, b))
        rows = [
            _compare_shapes(left.shape, right.shape),
            _compare_factors(left.factor_set, right.factor_set),
        ]
        rows += [
            _compare_tensors(name, left, right)
            for name in dict.fromkeys((*left.names, *right.names))
        ]
        if logits:
            assert runtime is not None
            rows.append(_compare_logits(left, right, tokens, runtime))
        return rows


def all_equal(rows: Sequence[Comparison]) -> bool:
    """Returns whether every row is equal."""
    return all(row.equal for row in rows)


def counts(rows: Sequence[Comparison]) -> dict[Verdict, int]:
    """Returns the number of rows of each verdict."""
    found = Counter(row.verdict for row in rows)
    return {verdict: found[verdict] for verdict in ("equal", "other dtype", "differs", "missing")}


def _compare_tensors(name: str, a: Side, b: Side) -> Comparison:
    left, right = (side.read(name) if name in side.names else None for side in (a, b))
    if left is None or right is None:
        return Comparison(name, _describe(left), _describe(right), False, None)
    if bits_equal(left, right):
        return Comparison(name, _describe(left), _describe(right), True, 0.0)
    comparable = left.shape == right.shape and left.numel()
    difference = _largest_difference(left, right) if comparable else None
    return Comparison(name, _describe(left), _describe(right), False, difference)


def _largest_difference(a: Tensor, b: Tensor) -> float:
    """Returns max |a − b| in float64, in pieces: the largest embeddings would not fit twice."""
    pieces = zip(a.flatten().split(_CHUNK_VALUES), b.flatten().split(_CHUNK_VALUES), strict=True)
    return max(float((left.double() - right.double()).abs().max()) for left, right in pieces)


def _describe(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _compare_shapes(a: ModelShape, b: ModelShape) -> Comparison:
    differing = [name for name in ModelShape.model_fields if getattr(a, name) != getattr(b, name)]
    left, right = (
        ", ".join(f"{name} {getattr(shape, name)}" for name in differing) or "same"
        for shape in (a, b)
    )
    return Comparison("(model shape)", left, right, not differing, None)


def _compare_factors(a: FactorSet, b: FactorSet) -> Comparison:
    """Compares the factors that two sets apply at every input length.

    Factors change at the limits of the ranges only, so the length 1, every limit and the length
    after each limit stand for all lengths. Names and origins of the factors do not count.
    """
    limits = {
        entry.up_to for factors in (a, b) for entry in factors.ranges if entry.up_to is not None
    }
    lengths = sorted({1} | limits | {limit + 1 for limit in limits})
    texts = _describe_factors(a), _describe_factors(b)
    difference = 0.0
    for length in lengths:
        left, right = a.for_length(length), b.for_length(length)
        if left.geometry != right.geometry or left.start_tokens != right.start_tokens:
            return Comparison("(rope factors)", *texts, False, None)
        pairs = zip(
            (*left.rescale, left.attention_factor),
            (*right.rescale, right.attention_factor),
            strict=True,
        )
        difference = max(difference, *(abs(x - y) for x, y in pairs))
    return Comparison("(rope factors)", *texts, difference == 0.0, difference)


def _describe_factors(factors: FactorSet) -> str:
    """Returns method, limit and attention factor of each range: `longrope ≤64 t1.25 / …`."""
    return " / ".join(
        f"{entry.factors.origin.method}{f' ≤{entry.up_to}' if entry.up_to else ''} "
        f"t{entry.factors.attention_factor:g}"
        for entry in factors.ranges
    )


def _compare_logits(a: Side, b: Side, tokens: int, runtime: Runtime) -> Comparison:
    if tokens < 2:
        raise InputError("--tokens", tokens, "at least 2")
    vocabulary = min(a.shape.vocab_size, b.shape.vocab_size)
    document = np.random.default_rng(_LOGITS_SEED).integers(0, vocabulary, tokens)
    left, right = (_logits(side, document, runtime) for side in (a, b))
    shape_a, shape_b = (f"{logits.shape[0]} tokens × {logits.shape[1]}" for logits in (left, right))
    if left.shape != right.shape:
        return Comparison("(logits)", shape_a, shape_b, False, None)
    difference = float(np.abs(left - right).max())
    return Comparison("(logits)", shape_a, shape_b, difference == 0.0, difference)


def _logits(side: Side, document: np.ndarray, runtime: Runtime) -> np.ndarray:
    with torch.no_grad():
        return document_logits(side.load(runtime), document)
