"""Microsoft's own evolution, run from a checkout of microsoft/LongRoPE with our evaluator.

Their `DimMonoGeneticAlgorithm` sends rescale factors to evaluators, which are subprocesses in their
code, and waits for perplexities; our evaluator takes the place of the subprocesses. Their search
keeps the attention factor at √(1 + ln s / ln L) and starts from YaRN. The checkout is put on the
module path, and its code runs unchanged.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_cost.problems import LENGTHS, Bench
from megatron_longrope.rope import Yarn, longrope_attention_factor
from megatron_longrope.search import Candidate, Journal, JournalEntry, Provenance


class _Enough(Exception):
    """Raised when the budget of evaluations is spent, to end their search."""


class _Evaluator:
    """The evaluator that their search talks to, which records every evaluation in a journal."""

    def __init__(self, bench: Bench, journal: Journal, budget: int | None) -> None:
        self._bench, self._journal, self._budget = bench, journal, budget
        self._attention_factor = longrope_attention_factor(bench.scale, bench.window)
        self._waiting: Candidate | None = None
        self._num_asked = 0

    def set_rope(self, rope_args: dict[str, Any]) -> None:
        """Takes the factors to evaluate next."""
        rescale = tuple(float(value) for value in rope_args["rescale_factors"])
        self._waiting = Candidate(rescale, 0, self._attention_factor)

    def get_result(self) -> float:
        """Returns the perplexity of the factors set last."""
        assert self._waiting is not None
        number, self._num_asked = self._num_asked, self._num_asked + 1
        # an interrupted search starts anew from its seed and is told again what is known
        if number < len(self._journal.entries):
            assert self._journal.entries[number].candidate == self._waiting
            return self._journal.entries[number].evaluation.perplexity
        if self._budget is not None and number >= self._budget:
            raise _Enough
        (evaluation,) = self._bench.search([self._waiting])
        provenance, cost = Provenance(0, "microsoft"), evaluation.cost_tokens
        entry = JournalEntry(number, self._waiting, provenance, evaluation, 0.0, cost)
        self._journal.append(entry)
        return evaluation.perplexity


def run_peer(bench: Bench, checkout: Path, path: Path, seed: int, budget: int | None) -> None:
    """Runs their search to its end or for `budget` evaluations, and leaves its journal at `path`.

    Args:
        bench: The problem to search on.
        checkout: Folder of the checkout of microsoft/LongRoPE.
        path: Path of the journal, from which an interrupted search goes on.
        seed: Seed of NumPy's global generator, which their code draws from.
        budget: Most evaluations; None lets the search end by itself.
    """
    sys.path.insert(0, str(checkout))
    from evolution.algorithms import DimMonoGeneticAlgorithm  # type: ignore[import-not-found]

    settings = json.loads(
        (checkout / "evolution/default_hyper_params/dim_mono.json").read_text(encoding="utf-8")
    )
    np.random.seed(seed)
    start = np.array(Yarn(scale=bench.scale).factors(bench.geometry).rescale)
    identity = {
        "searcher": "microsoft",
        "seed": seed,
        "settings": settings,
        "seeds": [],
        "space": {},
    }
    with (
        Journal.open(path, identity, bench.identity) as journal,
        tempfile.TemporaryDirectory() as folder,
    ):
        evaluator = _Evaluator(bench, journal, budget)
        search = DimMonoGeneticAlgorithm(
            evaluators=[evaluator],
            scale=bench.scale,
            target_length=max(LENGTHS.values()),
            hyper_params=settings,
            init_factors=start,
            rope_args={},
            log_json_path=str(Path(folder) / "log.json"),
            output_dir=folder,
        )
        try:
            search.run_genetic_algorithm()
        except _Enough:
            return
