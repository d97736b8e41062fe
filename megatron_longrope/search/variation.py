"""How genomes are varied: mutation, crossover and uniform draws, all non-decreasing in λ by construction."""

from __future__ import annotations

import numpy as np

from megatron_longrope.search.space import Genome, SearchSpace


def mutate(space: SearchSpace, parent: Genome, probability: float, rng: np.random.Generator) -> Genome:
    """Returns `parent` with each gene changed with `probability`; it may turn out equal to `parent`."""
    child = parent.copy()
    chosen = rng.random(len(child)) < probability
    sigma = np.exp(rng.uniform(np.log(0.01), np.log(0.5)))
    for pair in rng.permutation(np.flatnonzero(chosen[:-2])):
        _move_pair(space, child, int(pair), _near(space, int(child[pair]), float(sigma), rng))
    for gene in np.flatnonzero(chosen[-2:]) - 2:
        child[gene] = rng.integers(space.low[gene], space.high[gene] + 1)
    return child


def crossover(space: SearchSpace, first: Genome, second: Genome, rng: np.random.Generator) -> Genome:
    """Returns a child with every gene from one parent or the other, λ repaired to be non-decreasing."""
    child = np.where(rng.random(len(first)) < 0.5, first, second)
    child[:-2] = np.maximum.accumulate(child[:-2])
    return np.clip(child, space.low, space.high)


def draw(space: SearchSpace, rng: np.random.Generator) -> Genome:
    """Returns a genome drawn over the whole space: each gene uniform within its bounds, λ sorted."""
    genome = rng.integers(space.low, space.high + 1)
    genome[:-2] = np.clip(np.sort(genome[:-2]), space.low[:-2], space.high[:-2])
    return genome


def _near(space: SearchSpace, index: int, sigma: float, rng: np.random.Generator) -> int:
    """An index whose λ is log-normally distributed around that of `index`, at least one step away."""
    wanted = space.values[index] * np.exp(sigma * rng.standard_normal())
    moved = int(np.searchsorted(space.values, wanted))
    if moved == index:
        moved += 1 if wanted > space.values[index] else -1
    return moved


def _move_pair(space: SearchSpace, genome: Genome, pair: int, index: int) -> None:
    """Sets λ of `pair`, within its bounds, and pushes those in the way along, so that λ stays non-decreasing."""
    moved = min(max(index, int(space.low[pair])), int(space.high[pair]))
    genome[pair] = moved
    np.minimum(genome[:pair], moved, out=genome[:pair])
    np.maximum(genome[pair + 1 : -2], moved, out=genome[pair + 1 : -2])
    np.clip(genome, space.low, space.high, out=genome)
