"""How sure a margin between two candidates is: paired bootstrap over documents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megatron_longrope.artifacts.evaluations import Evaluation
from megatron_longrope.errors import InputError

_SAMPLES = 2000
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Margin:
    """By which factor another perplexity exceeds ours, with the ends of its 95 % interval; 1 is a
    draw.

    With one document there is nothing to draw from: the interval is then NaN.
    """

    ratio: float
    low: float
    high: float


def paired_margin(ours: Evaluation, other: Evaluation, seed: int = 0) -> Margin:
    """Returns other's perplexity over ours on the same documents; raises InputError where they are
    not the same."""
    if ours.token_counts != other.token_counts:
        raise InputError(
            "margin",
            other.token_counts,
            f"both need the same documents, ours have {ours.token_counts}",
        )
    counts = np.array(ours.token_counts, dtype=np.float64)
    differences = np.array(other.nll_sums) - np.array(ours.nll_sums)
    ratio = _exp(float(differences.sum() / counts.sum()))
    if len(counts) < 2:
        return Margin(ratio, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(0, len(counts), size=(_SAMPLES, len(counts)))
    means = differences[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, _INTERVAL)
    return Margin(ratio, _exp(float(low)), _exp(float(high)))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
