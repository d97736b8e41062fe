"""How sure a margin between two candidates is: paired by document, parts of a loss apart."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_longrope.artifacts.evaluations import Evaluation, ScoredPart
from megatron_longrope.errors import InputError

Array = NDArray[np.float64]
COVERAGE = 0.95
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(32)
_HALVINGS = 50


@dataclass(frozen=True)
class Margin:
    """The factor by which another perplexity exceeds ours, with the ends of its 95 % interval.

    1 means that neither is better. The interval is NaN where nothing says how documents differ: for
    a part of the loss that has a single document, and where a sum is not finite.
    """

    ratio: float
    low: float
    high: float


def paired_margin(ours: Evaluation, other: Evaluation, parts: Sequence[ScoredPart] = ()) -> Margin:
    """Returns the perplexity of `other` over that of `ours`, both on the same documents.

    `parts` are the objective's `scored_parts`; without them all documents are one part, each a text
    of its own. Raises InputError where token counts differ.

    >>> counts = (100, 100, 100)
    >>> ours, other = Evaluation((310, 290, 300), counts), Evaluation((322, 300, 311), counts)
    >>> margin = paired_margin(ours, other)
    >>> f"{margin.ratio - 1:+.1%}, {margin.low - 1:+.1%} to {margin.high - 1:+.1%}"
    '+11.6%, +8.9% to +14.4%'
    """
    if ours.token_counts != other.token_counts:
        raise InputError(
            "margin",
            other.token_counts,
            f"both need the same documents, ours have {ours.token_counts}",
        )
    differences = np.array(other.nll_sums) - np.array(ours.nll_sums)
    if not np.isfinite(differences).all():
        return Margin(_exp(float(differences.sum())), math.nan, math.nan)
    mean, low, high = difference_interval(differences, ours.token_counts, parts)
    return Margin(_exp(float(mean)), _exp(float(low)), _exp(float(high)))


def difference_interval(
    differences: ArrayLike, token_counts: Sequence[int], parts: Sequence[ScoredPart] = ()
) -> tuple[Array, Array, Array]:
    """Returns the mean of differences per token and the ends of its 95 % interval, each [...].

    `differences` [..., documents] are in nats, scaled as an evaluation's sums.
    Texts are what is drawn, not tokens: a text counts once, whatever stretches of it there are in
    whatever parts. The variance is that of the texts' influences on the mean, each over the share
    of itself that the mean takes away (HC2), and groups of parts that share no text are independent
    of each other: their variances add up (Welch, Satterthwaite). Where tokens are unevenly spread
    over texts, degrees of freedom by Satterthwaite (Bell and McCaffrey 2002) cover too much and
    texts − 1 too little; halfway between them covers 93 to 97 % at three texts and more, which
    `benchmarks/interval_coverage.py` measures.
    """
    array = np.asarray(differences, dtype=np.float64)
    counts = np.asarray(token_counts, dtype=np.float64)
    mean = array.sum(axis=-1) / counts.sum()
    variance = np.zeros_like(mean)
    per_freedom = np.zeros_like(mean)
    for group, places in _by_group(counts, parts):
        of_group, freedom = _group_variance(
            array[..., places], counts[places], group, float(counts.sum())
        )
        variance = variance + of_group
        per_freedom = per_freedom + of_group**2 / freedom
    # without any variance there is nothing to divide by, and no interval to multiply
    known = per_freedom != 0
    joint = np.divide(variance**2, per_freedom, out=np.ones_like(mean), where=known)
    reach = student_quantile((1 + COVERAGE) / 2, joint) * np.sqrt(variance)
    return mean, mean - reach, mean + reach


def student_quantile(probability: float, freedom: ArrayLike) -> Array:
    """Returns Student's t at `probability` (above ½) for 1 or more, also fractional, degrees of
    freedom; NaN gives NaN.

    With t = √ν·tan φ the density is cos^(ν−1) φ: integrated by Gauss and Legendre, inverted by
    halving.
    """
    degrees = np.asarray(freedom, dtype=np.float64)
    half = np.array([math.lgamma(v / 2) - math.lgamma((v + 1) / 2) for v in degrees.ravel()])
    wanted = (2 * probability - 1) * math.sqrt(math.pi) / 2 * np.exp(half.reshape(degrees.shape))
    low, high = np.zeros(degrees.shape), np.full(degrees.shape, math.pi / 2)
    for _ in range(_HALVINGS):
        angle = (low + high) / 2
        heights = np.cos(angle[..., None] / 2 * (_NODES + 1)) ** (degrees[..., None] - 1)
        is_below = angle / 2 * (heights @ _NODE_WEIGHTS) < wanted
        low, high = np.where(is_below, angle, low), np.where(is_below, high, angle)
    return np.where(np.isnan(degrees), math.nan, np.sqrt(degrees) * np.tan(low))


def _by_group(
    counts: Array, parts: Sequence[ScoredPart]
) -> list[tuple[tuple[ScoredPart, ...], list[int]]]:
    """Returns groups of parts that share texts, with the indices of each group's documents."""
    if not parts:
        parts = (ScoredPart("text", tuple(range(len(counts)))),)
    if sum(len(part.texts) for part in parts) != len(counts):
        raise InputError("margin", len(counts), f"documents, where the parts are {parts}")
    groups: list[tuple[tuple[ScoredPart, ...], list[int]]] = []
    start = 0
    for part in parts:
        places = list(range(start, start + len(part.texts)))
        start += len(part.texts)
        sharing = [group for group in groups if _texts_of(group[0]) & set(part.texts)]
        joined = (
            tuple(each for group, _ in sharing for each in group),
            [place for _, earlier in sharing for place in earlier],
        )
        groups = [group for group in groups if group not in sharing]
        groups.append(((*joined[0], part), joined[1] + places))
    return groups


def _texts_of(parts: Iterable[ScoredPart]) -> set[Hashable]:
    return {text for part in parts for text in part.texts}


def _group_variance(
    differences: Array, counts: Array, parts: Sequence[ScoredPart], total: float
) -> tuple[Array, float]:
    """Returns the variance [...] of what a group of parts adds to the mean, and its freedom.

    Both are NaN for a single text.

    Part p has the mean Σ_u h_pu·x_u of its texts' means x_u, h_pu being text u's share of its
    tokens, and adds w_p of that to the loss. Text u enters with c_u = Σ_p w_p·h_pu. Its influence,
    the sum over p of w_p·h_pu·(x_u − mean of p), is in the matrix A of c on the diagonal, less
    Σ_p w_p·h_pu·h_pv, times x. Were all x_u equally variable, the expected square of an influence
    would be (Σ_v A_uv²)·σ² where c_u²·σ² is wanted: it is divided by the ratio.
    """
    texts = list(dict.fromkeys(text for part in parts for text in part.texts))
    if len(texts) < 2:
        return np.full(differences.shape[:-1], math.nan), math.nan
    to_influence = np.zeros((len(counts), len(texts)))
    takes = np.zeros((len(texts), len(texts)))
    entering = np.zeros(len(texts))
    start = 0
    for part in parts:
        rows = slice(start, start + len(part.texts))
        start += len(part.texts)
        is_of = np.array([[text == each for each in texts] for text in part.texts], dtype=float)
        tokens = counts[rows] @ is_of
        shares = tokens / tokens.sum()
        to_influence[rows] = (is_of - shares) / total
        takes -= part.share * np.outer(shares, shares)
        entering += part.share * shares
    takes += np.diag(entering)
    corrections = entering**2 / (takes**2).sum(axis=1)
    spread = takes.T @ (corrections[:, None] * takes)
    satterthwaite = float(np.trace(spread) ** 2 / (spread**2).sum())
    influences = differences @ to_influence
    return influences**2 @ corrections, (satterthwaite + len(texts) - 1) / 2


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)
