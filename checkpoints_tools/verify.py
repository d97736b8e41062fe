"""Comparing two models tensor by tensor, whatever kind of folder holds them, and by what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from checkpoints_tools.export_hf import read_weight
from checkpoints_tools.hf_folder import bits_equal, open_hf_folder
from checkpoints_tools.import_hf import TIED, check_folder
from checkpoints_tools.load_any import find_model, load_model, model_factors
from checkpoints_tools.weight_map import bound_rules, hf_sizes, to_hf
from megatron_longrope.model import ModelShape, document_logits
from megatron_longrope.model.checkpoint import read_description, weights_folder
from megatron_longrope.model.torch_dist import StoredTensors
from megatron_longrope.rope import FactorSet
from megatron_longrope.runtime import Runtime

LOGITS_TOKENS = 256
_LOGITS_SEED = 20240221


@dataclass(frozen=True)
class Comparison:
    """One row of the table: a tensor, the RoPE factors or the logits. `difference` is the largest absolute one."""

    name: str
    a: str
    b: str
    equal: bool
    difference: float | None


@dataclass(frozen=True)
class _Source:
    """One side: HF names, and a function that reads one."""

    names: frozenset[str]
    read: Callable[[str], Tensor]
    shape: ModelShape


def verify(a: Path | str, b: Path | str, *, logits: bool = False, runtime: Runtime | None = None) -> list[Comparison]:
    """Returns the table of all tensors, shapes and factors of two models; equal means in every bit.

    With `logits` (which needs a one-process runtime) both also score the same random tokens in float32.
    """
    sides = (_open(a), _open(b))
    rows = [_compare_shapes(sides[0].shape, sides[1].shape), _compare_factors(model_factors(a), model_factors(b))]
    rows += [_compare_tensors(name, *sides) for name in _in_order(*sides)]
    if logits:
        assert runtime is not None
        rows.append(_compare_logits(a, b, sides[0].shape, sides[1].shape, runtime))
    return rows


def all_equal(rows: list[Comparison]) -> bool:
    """Returns whether nothing differs."""
    return all(row.equal for row in rows)


def _open(path: Path | str) -> _Source:
    kind, folder = find_model(path)
    if kind == "hf":
        opened = open_hf_folder(folder)
        shape, _ = check_folder(opened)
        return _Source(frozenset(hf_sizes(shape)), opened.tensor, shape)
    shape = read_description(folder).shape
    return _Source(frozenset(hf_sizes(shape)), _megatron_reader(folder, shape), shape)


def _megatron_reader(folder: Path, shape: ModelShape) -> Callable[[str], Tensor]:
    stored = StoredTensors(weights_folder(folder))
    where = {name: entry for entry in bound_rules(shape) for name in entry[2].hf}
    latest: dict[str, Tensor] = {}  # q, k and v, or gate and up, come from one weight: read it once

    def read(name: str) -> Tensor:
        if name not in latest:
            latest.clear()
            rule, layer, bound = where[name]
            latest.update(to_hf(bound, read_weight(stored, rule, layer, bound), shape))
        return latest[name]

    return read


def _in_order(a: _Source, b: _Source) -> list[str]:
    known = [*hf_sizes(a.shape), *hf_sizes(b.shape), *TIED]
    return [name for name in dict.fromkeys(known) if name in a.names | b.names]


def _compare_tensors(name: str, a: _Source, b: _Source) -> Comparison:
    left = a.read(name) if name in a.names else None
    right = b.read(name) if name in b.names else None
    if left is None or right is None:
        return Comparison(name, _describe(left), _describe(right), False, None)
    if bits_equal(left, right):
        return Comparison(name, _describe(left), _describe(right), True, 0.0)
    comparable = left.shape == right.shape and left.numel()
    difference = float((left.double() - right.double()).abs().max()) if comparable else None
    return Comparison(name, _describe(left), _describe(right), False, difference)


def _describe(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _compare_shapes(a: ModelShape, b: ModelShape) -> Comparison:
    differing = [name for name in ModelShape.model_fields if getattr(a, name) != getattr(b, name)]
    texts = [", ".join(f"{name} {getattr(shape, name)}" for name in differing) or "same" for shape in (a, b)]
    return Comparison("(model shape)", texts[0], texts[1], not differing, None)


def _compare_factors(a: FactorSet, b: FactorSet) -> Comparison:
    """Compares what the sets do at every length, not how they are written down or where they came from."""
    limits = {entry.up_to for factors in (a, b) for entry in factors.ranges if entry.up_to is not None}
    lengths = sorted({1} | limits | {limit + 1 for limit in limits})
    difference = 0.0
    for length in lengths:
        left, right = a.for_length(length), b.for_length(length)
        if left.geometry != right.geometry or left.start_tokens != right.start_tokens:
            return Comparison("(rope factors)", _describe_factors(a), _describe_factors(b), False, None)
        pairs = zip((*left.rescale, left.attention_factor), (*right.rescale, right.attention_factor), strict=True)
        difference = max(difference, *(abs(x - y) for x, y in pairs))
    return Comparison("(rope factors)", _describe_factors(a), _describe_factors(b), difference == 0.0, difference)


def _describe_factors(factors: FactorSet) -> str:
    return " / ".join(entry.factors.origin.method for entry in factors.ranges)


def _compare_logits(
    a: Path | str, b: Path | str, shape_a: ModelShape, shape_b: ModelShape, runtime: Runtime
) -> Comparison:
    vocabulary = min(shape_a.vocab_size, shape_b.vocab_size)
    tokens = np.random.default_rng(_LOGITS_SEED).integers(0, vocabulary, LOGITS_TOKENS)
    left, right = (document_logits(load_model(path, runtime).model, tokens) for path in (a, b))
    if left.shape != right.shape:
        return Comparison("(logits)", str(list(left.shape)), str(list(right.shape)), False, None)
    difference = float(np.abs(left - right).max())
    return Comparison("(logits)", str(list(left.shape)), str(list(right.shape)), difference == 0.0, difference)
