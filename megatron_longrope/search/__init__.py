"""Searching rescale factors: ask/tell searchers, spaces, the journal, the loop. Numpy only; never
sees a model."""

from megatron_longrope.artifacts.evaluations import Candidate, Evaluation, Gradient, Provenance
from megatron_longrope.artifacts.journal import (
    Journal,
    JournalEntry,
    MemoryJournal,
    Record,
    read_journal,
)
from megatron_longrope.search.bootstrap import Margin, paired_margin
from megatron_longrope.search.choice import SEARCHER_NAMES, SearcherChoice, make_searcher
from megatron_longrope.search.cma_search import CmaSearch, CmaSettings
from megatron_longrope.search.critical import CriticalSpace, theoretical_critical_pair
from megatron_longrope.search.descent import DescentSettings
from megatron_longrope.search.evolution import EvolutionSearch, EvolutionSettings
from megatron_longrope.search.gradient_search import GradientSearch
from megatron_longrope.search.hybrid_search import HybridSearch, HybridSettings
from megatron_longrope.search.loop import (
    Objective,
    SearchOutcome,
    SearchProgress,
    run_search,
)
from megatron_longrope.search.piecewise import PiecewiseSearch
from megatron_longrope.search.random_search import RandomSearch, RandomSettings
from megatron_longrope.search.space import (
    PAPER_START_TOKENS,
    SEARCHED_ATTENTION_FACTORS,
    SearchSpace,
    grid,
)
from megatron_longrope.search.stopping import EarlyStopping
from megatron_longrope.search.types import Searcher, TellError, Terms

__all__ = [
    "PAPER_START_TOKENS",
    "SEARCHED_ATTENTION_FACTORS",
    "SEARCHER_NAMES",
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
    "PiecewiseSearch",
    "Provenance",
    "RandomSearch",
    "RandomSettings",
    "Record",
    "SearchOutcome",
    "SearchProgress",
    "SearchSpace",
    "Searcher",
    "SearcherChoice",
    "TellError",
    "Terms",
    "grid",
    "make_searcher",
    "paired_margin",
    "read_journal",
    "run_search",
    "theoretical_critical_pair",
]
