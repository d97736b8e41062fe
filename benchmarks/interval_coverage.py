"""How often the 95 % interval of a search's margins holds the true margin, by simulation.

    python -m benchmarks.interval_coverage     the table of the log, 20,000 margins a cell

A margin is the mean difference in nats per token between two candidates over a few documents. Here
each document's difference is a common one plus an effect of the document, drawn from a distribution
of mean 0; documents have equal numbers of tokens, or evenly from a full number down to a quarter of
it. `parts` has as many texts again in a second part of the loss at half the weight: prefixes of the
same texts, and retrieval documents of their own in a third. Beside it stands the interval the
library had before, from 2000 paired resamplings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from megatron_longrope.artifacts.evaluations import ScoredPart
from megatron_longrope.search.margin import difference_interval

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
TRUE_MARGIN = 0.02
"""Nats per token; its size is of no consequence."""
TOKENS = 4096
SIZES = (3, 5, 8)

EFFECTS: dict[str, Draw] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "skewed (gamma 4, skewness 1)": lambda random, shape: random.gamma(4.0, size=shape) - 4,
    "heavy tails (Student's t, 3)": lambda random, shape: random.standard_t(3, shape),
    "heavy tails (Laplace)": lambda random, shape: random.laplace(size=shape),
}
VERY_SKEWED: dict[str, Draw] = {
    "log-normal 0.5, skewness 1.75": lambda random, shape: (
        np.exp(0.5 * random.standard_normal(shape)) - np.exp(0.125)
    ),
    "exponential, skewness 2": lambda random, shape: random.exponential(size=shape) - 1,
}


def token_counts(size: int, *, equal: bool) -> tuple[int, ...]:
    """Returns the tokens of `size` documents: all alike, or evenly down to a quarter."""
    return (TOKENS,) * size if equal else tuple(np.linspace(TOKENS, TOKENS // 4, size).astype(int))


def covered_by_interval(draw: Draw, size: int, trials: int, *, equal: bool, seed: int) -> float:
    """Returns the share of `trials` in which the interval over `size` texts holds the truth."""
    counts = token_counts(size, equal=equal)
    effects = draw(np.random.default_rng(seed), (trials, size))
    differences = np.array(counts) * (TRUE_MARGIN + effects)
    _, low, high = difference_interval(differences, counts)
    return float(np.mean((low <= TRUE_MARGIN) & (high >= TRUE_MARGIN)))


def covered_in_parts(draw: Draw, size: int, trials: int, *, seed: int) -> float:
    """Returns the same for a loss of three parts: texts, a quarter of each of them, and answers of
    as many retrieval documents, which differ ten times as much."""
    random = np.random.default_rng(seed)
    texts, needles = draw(random, (trials, size)), 10 * draw(random, (trials, size))
    within = 0.3 * draw(random, (trials, size))  # a prefix is not quite its text
    parts = (
        ScoredPart("text", tuple(range(size)), 0.5),
        ScoredPart("text at a quarter", tuple(range(size)), 0.25),
        ScoredPart("answers", tuple((0, i) for i in range(size)), 0.25, is_text=False),
    )
    counts = (TOKENS,) * size + (TOKENS // 4,) * size + (5,) * size
    total = sum(counts)
    sums = [  # what an objective makes of each part's mean: its share of all tokens
        TRUE_MARGIN + values for values in (texts, texts + within, needles)
    ]
    scaled = [each * part.share * total / size for each, part in zip(sums, parts, strict=True)]
    _, low, high = difference_interval(np.concatenate(scaled, axis=1), counts, parts)
    return float(np.mean((low <= TRUE_MARGIN) & (high >= TRUE_MARGIN)))


def covered_by_resampling(draw: Draw, size: int, trials: int, *, equal: bool, seed: int) -> float:
    """Returns the same for percentiles of 2000 paired resamplings of the documents."""
    counts = np.array(token_counts(size, equal=equal), dtype=np.float64)
    random = np.random.default_rng(seed)
    covered = 0
    for _ in range(trials):
        differences = counts * (TRUE_MARGIN + draw(random, (size,)))
        drawn = random.integers(0, size, size=(2000, size))
        means = differences[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        covered += int(low <= TRUE_MARGIN <= high)
    return covered / trials


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20_000, help="margins a cell")
    parser.add_argument("--resampled", type=int, default=2000, help="of them by resampling")
    options = parser.parse_args()
    print("| effect of a document | tokens | interval: 3, 5, 8 texts | resampling: 3, 5, 8 |")
    print("|---|---|---|---|")
    for name, draw in (EFFECTS | VERY_SKEWED).items():
        for equal in (True, False):
            ours = [
                covered_by_interval(draw, size, options.trials, equal=equal, seed=size)
                for size in SIZES
            ]
            before = [
                covered_by_resampling(draw, size, options.resampled, equal=equal, seed=size)
                for size in SIZES
            ]
            print(_line(name, "equal" if equal else "4 : 1", ours, before))
        mixed = [covered_in_parts(draw, size, options.trials, seed=size) for size in SIZES]
        print(_line(name, "three parts", mixed, []))


def _line(name: str, tokens: str, ours: list[float], before: list[float]) -> str:
    cells = [", ".join(f"{100 * share:.1f}" for share in shares) for shares in (ours, before)]
    return f"| {name} | {tokens} | {cells[0]} | {cells[1]} |"


if __name__ == "__main__":
    main()
