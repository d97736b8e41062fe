"""Objectives that need no model: a smooth function of the candidate, and small spaces to search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_longrope.search import (
    Candidate,
    Evaluation,
    EvolutionSearch,
    EvolutionSettings,
    Gradient,
    SearchSpace,
    SearchTask,
    Terms,
)

NUM_PAIRS = 8
SCALE = 8.0
TASK = SearchTask(length=2048, scale=SCALE, num_documents=2)
SPACE = SearchSpace.first_stage(NUM_PAIRS, SCALE, start_tokens=(0, 1, 2, 4, 8))
SMALL = EvolutionSettings(population=10, mutants=4, crossovers=4, parents=5, iterations=3)
SEEDS = (
    Candidate((SCALE,) * NUM_PAIRS),
    Candidate(tuple(SCALE ** (np.arange(NUM_PAIRS) / (NUM_PAIRS - 1)))),
)


def stub_evaluation(candidate: Candidate) -> Evaluation:
    """Returns a smooth score on two documents of 100 and 50 tokens.

    The optimum is a logistic step in log λ, n̂ = 4 and t = 1.17.
    """
    distance = float(np.mean((np.log(candidate.rescale) - _target(len(candidate.rescale))) ** 2))
    loss = (
        2.0
        + distance
        + 3 * (candidate.attention_factor - 1.17) ** 2
        + 0.002 * abs(candidate.start_tokens - 4)
    )
    return Evaluation((100 * loss, 50 * loss), (100, 50))


def stub_gradient(candidate: Candidate) -> Gradient:
    """Returns the gradient of the loss of `stub_evaluation` by λ and t."""
    logs = np.log(candidate.rescale)
    by_rescale = 2 * (logs - _target(len(logs))) / len(logs) / np.array(candidate.rescale)
    return Gradient(by_rescale, 6 * (candidate.attention_factor - 1.17))


def stub_objective(candidates: Sequence[Candidate], terms: Terms | None = None) -> list[Evaluation]:
    """Returns evaluations of all candidates, with the sample and gradients that `terms` ask for."""
    terms = terms or Terms()
    evaluations = [_of(stub_evaluation(candidate), terms.sample) for candidate in candidates]
    if not terms.gradient:
        return evaluations
    return [
        replace(e, gradient=stub_gradient(c)) for e, c in zip(evaluations, candidates, strict=True)
    ]


def _of(whole: Evaluation, sample: tuple[int, ...] | None) -> Evaluation:
    if sample is None:
        return whole
    sums, counts = ([values[d] for d in sample] for values in (whole.nll_sums, whole.token_counts))
    return Evaluation(tuple(sums), tuple(counts), completed=False, sample=sample)


def _target(num_pairs: int) -> np.ndarray:
    return np.log(9.0) / (1 + np.exp(-(np.arange(num_pairs) - 3.0)))


def small_search(seed: int = 1, settings: EvolutionSettings = SMALL) -> EvolutionSearch:
    """Returns an evolution search of the small space."""
    return EvolutionSearch(SPACE, settings, SEEDS, seed, TASK)
