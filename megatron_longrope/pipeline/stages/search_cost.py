"""The most that a search can cost, counted before anything is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from megatron_longrope.evaluation import ScoringCost
from megatron_longrope.model import ModelShape
from megatron_longrope.model.engine.settings import Recompute
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import SearchProblem
from megatron_longrope.pipeline.stages.stage import Cost
from megatron_longrope.search import Evaluation, Gradient, RoundSearcher, SearchTask

_MOST_EVALUATIONS = 100_000
"""Where counting ends, for a searcher that has no end of its own."""


def most_of_a_search(
    problem: SearchProblem,
    config: SearchConfig,
    num_documents: int,
    shape: ModelShape,
    recompute: Recompute,
) -> Cost:
    """Returns the cost of a search in which nothing is stopped early.

    The searcher itself is run, on made-up losses: it alone knows how many candidates it proposes,
    and which of them it wants scored on a few documents or with gradients. Each loss is lower than
    all before it, so that the search does not end early for lack of progress. If the searcher says
    that it may take more evaluations still, these are added, on all documents.

    Args:
        problem: Space, seeds and length of the search.
        config: The searcher, and what candidates are scored on.
        num_documents: Number of documents that are searched on.
        shape: Sizes of the model.
        recompute: Which activations a backward pass computes again.
    """
    texts = _text_lengths(config, num_documents, problem.length)
    searcher = new_searcher(problem, config, num_documents, shape)
    most = searcher.num_evaluations or 0
    ladder = config.early_stopping.ladder if config.early_stopping else ()
    scoring = ScoringCost(
        shape, recompute, tuple(texts), tuple((rung,) * num_documents for rung in ladder)
    )
    rungs = (1.0,) * len(ladder)
    evaluations = tokens = backward = 0
    flops = 0.0
    while not searcher.finished and evaluations < _MOST_EVALUATIONS:
        sample, with_gradient = searcher.sample, searcher.asks_gradient
        scored = texts if sample is None else [texts[number] for number in sample]
        for candidate in searcher.ask(searcher.round_size):
            evaluation = _made_up(scored, evaluations, sample)
            if with_gradient:
                flat = Gradient(np.zeros(len(candidate.rescale)), 0.0)
                evaluation = replace(evaluation, gradient=flat)
                backward += sum(scored)
            elif sample is None:
                evaluation = replace(evaluation, rungs=rungs)
            tokens += scoring.tokens(evaluation)
            flops += scoring.flops(evaluation)
            evaluations += 1
            searcher.tell(candidate, evaluation)
    further = max(0, most - evaluations)
    whole = replace(_made_up(texts, evaluations, None), rungs=rungs)
    return Cost(
        evaluations + further,
        tokens + further * scoring.tokens(whole),
        backward,
        flops + further * scoring.flops(whole),
    )


def new_searcher(
    problem: SearchProblem, config: SearchConfig, num_documents: int, shape: ModelShape
) -> RoundSearcher[Any]:
    """Returns the searcher of a search before it is asked anything.

    Raises InputError for settings that the searcher cannot work with.
    """
    task = SearchTask(
        length=problem.length,
        scale=problem.length / shape.context_length,
        num_documents=len(_text_lengths(config, num_documents, problem.length)),
    )
    return config.searcher.build(problem.space, problem.seeds, config.seed, task)


def _text_lengths(config: SearchConfig, num_documents: int, length: int) -> list[int]:
    """Returns the tokens of each input that a candidate is scored on, in the objective's order."""
    windows = num_documents * config.windows_per_document
    lengths = [length, *config.mixture]
    texts = [tokens for tokens in lengths for _ in range(windows)]
    return texts + [length] * config.retrieval_documents


def _made_up(texts: list[int], number: int, sample: tuple[int, ...] | None) -> Evaluation:
    """Returns an evaluation that is better than all before it."""
    loss = 1.0 + 1.0 / (1 + number)
    sums = tuple(loss * tokens for tokens in texts)
    return Evaluation(sums, tuple(texts), sample is None, sample=sample)
