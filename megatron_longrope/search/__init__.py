"""Searching rescale factors: spaces, ask/tell searchers, early stopping, and the loop of a search.

Everything here is NumPy: a search knows its model only as an objective, a function that gives the
evaluations of candidates. Here the loss is the distance of log λ to log 4:

>>> import math
>>> def objective(candidates, terms):
...     for candidate in candidates:
...         distance = sum((math.log(x) - math.log(4)) ** 2 for x in candidate.rescale)
...         yield Evaluation(nll_sums=(100 * distance,), token_counts=(100,))
>>> space = SearchSpace.first_stage(num_pairs=4, scale=8)
>>> task = SearchTask(length=4096, scale=8, num_documents=1)
>>> choice = SearcherChoice.model_validate({"name": "random", "evaluations": 50})
>>> searcher = choice.build(space, [Candidate((8.0,) * 4)], seed=1, task=task)
>>> outcome = run_search(searcher, objective, MemoryJournal())
>>> len(outcome.entries), outcome.evaluation.loss < outcome.entries[0].evaluation.loss
(51, True)
"""

from megatron_longrope.artifacts.evaluations import Candidate, Evaluation, Gradient, Provenance
from megatron_longrope.artifacts.journal import (
    Journal,
    JournalEntry,
    MemoryJournal,
    Record,
    read_journal,
)
from megatron_longrope.search.choice import SearcherChoice
from megatron_longrope.search.critical import CriticalSpace, theoretical_critical_pair
from megatron_longrope.search.descent import DescentSettings
from megatron_longrope.search.loop import (
    Objective,
    SearchOutcome,
    SearchProgress,
    run_search,
)
from megatron_longrope.search.margin import Margin, paired_margin
from megatron_longrope.search.open_space import OpenSpace
from megatron_longrope.search.options import SettingOption, merge_settings
from megatron_longrope.search.ramp import RampSettings
from megatron_longrope.search.rounds import Proposal, RoundSearcher
from megatron_longrope.search.searchers import DEFAULT_SEARCHER, SEARCHERS
from megatron_longrope.search.searchers.cma import CmaSearch, CmaSettings
from megatron_longrope.search.searchers.evolution import EvolutionSearch, EvolutionSettings
from megatron_longrope.search.searchers.gradient import GradientSearch
from megatron_longrope.search.searchers.hybrid import HybridSearch, HybridSettings
from megatron_longrope.search.searchers.piecewise import PiecewiseSearch
from megatron_longrope.search.searchers.random import RandomSearch, RandomSettings
from megatron_longrope.search.space import (
    PAPER_START_TOKENS,
    SEARCHED_ATTENTION_FACTORS,
    SearchSpace,
    grid,
)
from megatron_longrope.search.stopping import EarlyStopping
from megatron_longrope.search.types import (
    Searcher,
    SearchStage,
    SearchTask,
    SpaceName,
    TellError,
    Terms,
)

__all__ = [
    "DEFAULT_SEARCHER",
    "PAPER_START_TOKENS",
    "SEARCHED_ATTENTION_FACTORS",
    "SEARCHERS",
    "Candidate",
    "CmaSearch",
    "CmaSettings",
    "CriticalSpace",
    "DescentSettings",
    "EarlyStopping",
    "Evaluation",
    "EvolutionSearch",
    "EvolutionSettings",
    "Gradient",
    "GradientSearch",
    "HybridSearch",
    "HybridSettings",
    "Journal",
    "JournalEntry",
    "Margin",
    "MemoryJournal",
    "Objective",
    "OpenSpace",
    "PiecewiseSearch",
    "Proposal",
    "Provenance",
    "RampSettings",
    "RandomSearch",
    "RandomSettings",
    "Record",
    "RoundSearcher",
    "SearchOutcome",
    "SearchProgress",
    "SearchSpace",
    "SearchStage",
    "SearchTask",
    "Searcher",
    "SearcherChoice",
    "SettingOption",
    "SpaceName",
    "TellError",
    "Terms",
    "grid",
    "merge_settings",
    "paired_margin",
    "read_journal",
    "run_search",
    "theoretical_critical_pair",
]
