"""The confidence interval of the margin between two candidates: a paired bootstrap over documents.

Both candidates were scored on the same documents. Resampling documents, with the losses of both,
keeps what makes a document easy or hard out of the interval (Efron & Tibshirani, An Introduction to
the Bootstrap, 1993: the percentile interval).
"""

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
    """The factor by which another perplexity exceeds ours, with the ends of its 95 % interval.

    1 means that neither is better. The interval of a single document is NaN, because there is
    nothing to resample.
    """

    ratio: float
    low: float
    high: float


def paired_margin(ours: Evaluation, other: Evaluation, seed: int = 0) -> Margin:
    """Returns the perplexity of `other` over that of `ours`, both on the same documents.

    Raises InputError where their token counts differ.

    >>> ours = Evaluation(nll_sums=(200.0, 210.0), token_counts=(100, 100))
    >>> other = Evaluation(nll_sums=(220.0, 230.0), token_counts=(100, 100))
    >>> round(paired_margin(ours, other).ratio, 4)  # exp(40 nats / 200 tokens)
    1.2214
    """
    if ours.token_counts != other.token_counts:
        raise InputError(
            "margin",
            other.token_counts,
            f"both need the same documents, ours have {ours.token_counts}",
        )
    counts = np.array(ours.token_counts, dtype=np.float64)
    differences = np.array(other.nll_sums) - np.array(ours.nll_sums)
    # exp(Σ nll'/Σ tokens) / exp(Σ nll/Σ tokens) = exp(Σ (nll' − nll) / Σ tokens)
    ratio = _exp(float(differences.sum() / counts.sum()))
    if len(counts) < 2:
        return Margin(ratio, math.nan, math.nan)
    # each row draws as many documents as there are, with replacement; numerator and denominator
    # are summed over the same draw, because the ratio of sums is what is estimated
    drawn = np.random.default_rng(seed).integers(0, len(counts), size=(_SAMPLES, len(counts)))
    means = differences[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, _INTERVAL)
    return Margin(ratio, _exp(float(low)), _exp(float(high)))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
