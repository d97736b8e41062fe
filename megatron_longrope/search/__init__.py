"""Searching rescale factors: ask/tell searchers, spaces, the journal, the loop. Numpy only; never sees a model."""

from megatron_longrope.search.evolution import EvolutionSearch, EvolutionSettings
from megatron_longrope.search.journal import Journal, JournalEntry, MemoryJournal, Record, read_journal
from megatron_longrope.search.loop import Objective, SearchOutcome, SearchProgress, run_search
from megatron_longrope.search.space import PAPER_START_TOKENS, SEARCHED_ATTENTION_FACTORS, SearchSpace, grid
from megatron_longrope.search.types import Candidate, Evaluation, Gradient, Provenance, Searcher, TellError

__all__ = [
    "PAPER_START_TOKENS",
    "SEARCHED_ATTENTION_FACTORS",
    "Candidate",
    "Evaluation",
    "EvolutionSearch",
    "EvolutionSettings",
    "Gradient",
    "Journal",
    "JournalEntry",
    "MemoryJournal",
    "Objective",
    "Provenance",
    "Record",
    "SearchOutcome",
    "SearchProgress",
    "SearchSpace",
    "Searcher",
    "TellError",
    "grid",
    "read_journal",
    "run_search",
]
