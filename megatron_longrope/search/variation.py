"""Operators on genomes: mutation, crossover and uniform draws, with λ non-decreasing throughout.

They are the mutation and crossover with monotonicity constraint of LongRoPE's search (arXiv
2402.13753, Algorithm 1), with another step. The paper redraws a λ uniformly between its neighbours
and discards results that decrease. That cannot leave PI, where all neighbours are equal, and it
moves one pair at a time. Here a chosen λ makes a log-normal step and pushes the pairs in its way
along, so that one step can move a block. The size of the steps is drawn anew for each mutant, from
coarse to fine.

On four synthetic objectives (32 pairs, 8 times the window, 224 evaluations, geometric mean over 12
seeds) the distance left to the optimum was 8.6 / 16 / 24 / 25 (in 1e-3), with the paper's two
operators 26 / 147 / 76 / 23: far better where the loss is smooth in λ, no better where it
oscillates with it.
"""

from __future__ import annotations

import numpy as np

from megatron_longrope.search.space import Genome, SearchSpace, nearest

_SIGMA_RANGE = (0.03, 0.5)
"""Range of the standard deviation of steps in log λ, from a few grid steps at λ = 1 to coarse."""
_CLOSE_CHOICES = 2
"""Number of choices of n̂ or t on either side that count as close."""


def mutate(
    space: SearchSpace, parent: Genome, probability: float, rng: np.random.Generator
) -> Genome:
    """Returns a copy of `parent` in which each gene is changed with `probability`.

    The result may equal `parent`, where no gene was chosen or none could move.
    """
    child = parent.copy()
    chosen = rng.random(len(child)) < probability
    sigma = float(np.exp(rng.uniform(*np.log(_SIGMA_RANGE))))  # log-uniform
    # in random order, because a later move may push an earlier one back
    for pair in rng.permutation(np.flatnonzero(chosen[:-2])):
        _move_pair(space, child, int(pair), _near(space, int(child[pair]), sigma, rng))
    for gene in np.flatnonzero(chosen[-2:]) - 2:
        child[gene] = _redraw(space, int(child[gene]), int(gene), rng)
    return child


def crossover(first: Genome, second: Genome, rng: np.random.Generator) -> Genome:
    """Returns `first` with a run of consecutive λ from `second`, repaired to be non-decreasing.

    n̂ and t come from either parent at even odds. A run keeps neighbouring pairs together; if each
    λ were taken from either parent alone, the repair would leave little of both.
    """
    start, end = sorted(rng.integers(0, len(first) - 1, size=2))
    child = first.copy()
    child[start:end] = second[start:end]
    child[-2:] = np.where(rng.random(2) < 0.5, first[-2:], second[-2:])
    # the running maximum stays within bounds, because the bounds do not decrease from pair to pair
    child[:-2] = np.maximum.accumulate(child[:-2])
    return child


def draw_genome(space: SearchSpace, rng: np.random.Generator) -> Genome:
    """Returns a genome with every gene uniform within its bounds, and λ then sorted."""
    genome = rng.integers(space.low, space.high + 1)
    # sorting may take a value to a pair whose bounds exclude it
    genome[:-2] = np.clip(np.sort(genome[:-2]), space.low[:-2], space.high[:-2])
    return genome


def _near(space: SearchSpace, index: int, sigma: float, rng: np.random.Generator) -> int:
    """Returns an index whose λ is log-normal around that of `index`, at least one step away.

    In a space with other coordinates than log λ these are normal.
    """
    wanted = space.moved(float(space.values[index]), sigma * float(rng.standard_normal()))
    moved = int(nearest(space.values, np.array(wanted)))
    if moved == index:
        moved += 1 if wanted > space.values[index] else -1
    return moved


def _redraw(space: SearchSpace, index: int, gene: int, rng: np.random.Generator) -> int:
    """Returns a choice of n̂ or t: at even odds any of them, or one close to `index`."""
    low, high = int(space.low[gene]), int(space.high[gene])
    if rng.random() < 0.5:
        low, high = max(low, index - _CLOSE_CHOICES), min(high, index + _CLOSE_CHOICES)
    return int(rng.integers(low, high + 1))


def _move_pair(space: SearchSpace, genome: Genome, pair: int, index: int) -> None:
    """Sets λ of `pair` in place, clipped to its bounds, and pushes the pairs in its way along.

    Bounds do not decrease from pair to pair, so every pair pushed stays within its own.
    """
    moved = min(max(index, int(space.low[pair])), int(space.high[pair]))
    genome[pair] = moved
    # faster pairs may not exceed it, slower pairs may not be below it
    np.minimum(genome[:pair], moved, out=genome[:pair])
    np.maximum(genome[pair + 1 : -2], moved, out=genome[pair + 1 : -2])
