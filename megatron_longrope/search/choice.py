"""Which searcher a search uses, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.config import StrictConfig
from megatron_longrope.search.cma_search import CmaSearch, CmaSettings
from megatron_longrope.search.descent import DescentSettings
from megatron_longrope.search.evolution import EvolutionSearch, EvolutionSettings
from megatron_longrope.search.gradient_search import GradientSearch
from megatron_longrope.search.hybrid_search import HybridSearch, HybridSettings
from megatron_longrope.search.piecewise import PiecewiseSearch
from megatron_longrope.search.random_search import RandomSearch, RandomSettings
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import Searcher

SearcherName = Literal["hybrid", "evolution", "piecewise", "cma", "gradient", "random"]
SEARCHER_NAMES: tuple[SearcherName, ...] = (
    "hybrid",
    "evolution",
    "piecewise",
    "cma",
    "gradient",
    "random",
)


class SearcherChoice(StrictConfig):
    """A searcher by name, and settings under that name: `searcher: evolution` with `evolution:
    {population: 24}`."""

    searcher: SearcherName = "hybrid"
    hybrid: HybridSettings | None = None
    evolution: EvolutionSettings | Literal["paper"] | None = None
    """`paper`, the default of this searcher: the paper's sizes, halved above 512k tokens. Also
    those of `piecewise`."""
    cma: CmaSettings | None = None
    gradient: DescentSettings | None = None
    random: RandomSettings | None = None

    @model_validator(mode="after")
    def _only_its_own(self) -> SearcherChoice:
        used = "evolution" if self.searcher == "piecewise" else self.searcher
        for name in ("hybrid", "evolution", "cma", "gradient", "random"):
            if name != used and getattr(self, name) is not None:
                raise ValueError(f"settings of {name} are given, but searcher is {self.searcher}")
        return self

    def evolution_settings(self, target_length: int) -> EvolutionSettings:
        """Returns the sizes of an evolution for `target_length` tokens."""
        if self.evolution is None or self.evolution == "paper":
            return EvolutionSettings.paper(target_length)
        return self.evolution


def make_searcher(
    choice: SearcherChoice,
    space: SearchSpace,
    seeds: Sequence[Candidate],
    seed: int,
    *,
    length: int,
    scale: float,
    num_documents: int,
) -> Searcher:
    """Returns the searcher of `choice` for `num_documents` inputs of `length` tokens, `scale` times
    the pretrained window."""
    if choice.searcher == "evolution":
        return EvolutionSearch(space, choice.evolution_settings(length), seeds, seed)
    if choice.searcher == "piecewise":
        return PiecewiseSearch(space, choice.evolution_settings(length), seeds, seed, level=scale)
    if choice.searcher == "cma":
        return CmaSearch(space, choice.cma or CmaSettings(), seeds, seed)
    if choice.searcher == "gradient":
        return GradientSearch(
            space, choice.gradient or DescentSettings(), seeds, seed, num_documents
        )
    if choice.searcher == "random":
        return RandomSearch(space, choice.random or RandomSettings(), seeds, seed)
    return HybridSearch(space, choice.hybrid or HybridSettings(), seeds, seed, num_documents)
