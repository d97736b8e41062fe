"""The registry of searchers: a new one is a file in this folder and a line below."""

from __future__ import annotations

from typing import Any

from megatron_longrope.registry import Registry
from megatron_longrope.search.rounds import RoundSearcher
from megatron_longrope.search.searchers.cma import CmaSearch
from megatron_longrope.search.searchers.evolution import EvolutionSearch
from megatron_longrope.search.searchers.gradient import GradientSearch
from megatron_longrope.search.searchers.hybrid import HybridSearch
from megatron_longrope.search.searchers.piecewise import PiecewiseSearch
from megatron_longrope.search.searchers.ramp import RampSearch
from megatron_longrope.search.searchers.random import RandomSearch

SEARCHERS: Registry[type[RoundSearcher[Any]]] = Registry("searcher")
SEARCHERS.register(HybridSearch.name, HybridSearch)
SEARCHERS.register(RampSearch.name, RampSearch)
SEARCHERS.register(EvolutionSearch.name, EvolutionSearch)
SEARCHERS.register(PiecewiseSearch.name, PiecewiseSearch)
SEARCHERS.register(CmaSearch.name, CmaSearch)
SEARCHERS.register(GradientSearch.name, GradientSearch)
SEARCHERS.register(RandomSearch.name, RandomSearch)

DEFAULT_SEARCHER = HybridSearch.name
"""Name of the searcher that is used where none is named."""
