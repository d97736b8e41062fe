"""The three searches of the method: a first length, a further length, and short inputs.

Each has a space of candidates, seeds to start from, and baselines to be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import ComparedMethod, baseline_methods
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.rope import (
    METHODS,
    FactorOrigin,
    FactorSet,
    NoScaling,
    RopeFactors,
    RopeGeometry,
    Yarn,
    longrope_attention_factor,
)
from megatron_longrope.rope.methods.uses import default_second_interpolations
from megatron_longrope.search import (
    DEFAULT_SEARCHER,
    PAPER_START_TOKENS,
    SEARCHED_ATTENTION_FACTORS,
    Candidate,
    CriticalSpace,
    SearchSpace,
    SearchStage,
    grid,
    theoretical_critical_pair,
)
from megatron_longrope.search.space import Choices

_SHARPEST = 1.4
"""The highest attention factor of a second search, over the fine-tuned one."""
_ABOVE_YARN = 1.05
"""The highest attention factor of a first search, over YaRN's, where that exceeds the usual 1.3.

From 13 times the window on, YaRN's own 0.1·ln s + 1 is close to 1.3 or above it (arXiv 2309.00071),
and the best candidates would all lie on the bound."""


@dataclass(frozen=True)
class SearchProblem:
    """One search: its space, its starts, and what its result is compared with."""

    name: str
    """The name of its journal and of its factors."""
    length: int
    """Tokens to search for."""
    space: SearchSpace
    seeds: tuple[Candidate, ...]
    """The candidates that are scored first."""
    baselines: tuple[ComparedMethod, ...]
    """Other methods, each with its own attention factor."""


def search_name(
    length: int, config: SearchConfig, kind: Literal["search", "recover"] = "search"
) -> str:
    """Returns the name of a search's journal and factors, such as `search-4096`.

    Searchers other than the default one add their names, as in `search-4096-evolution`, so that
    several may search in one directory.
    """
    searcher = config.searcher.name
    return f"{kind}-{length}" if searcher == DEFAULT_SEARCHER else f"{kind}-{length}-{searcher}"


def first_search(config: SearchConfig, geometry: RopeGeometry, length: int) -> SearchProblem:
    """Returns the search of a pretrained model for `length` tokens, with λ from 1 to 1.25·s.

    It starts from the scaling methods in `starts`. Raises InputError for settings that have no
    meaning in a first search.
    """
    _refuse_mistakes(config, "first", length)
    scale = length / geometry.original_length
    choices = _choices(config, scale, geometry, tuned=None)
    num_pairs = geometry.head_dim // 2
    if config.space == "longrope2":
        critical_pair = config.critical_pair or theoretical_critical_pair(
            geometry.head_dim, geometry.base, geometry.original_length
        )
        space: SearchSpace = CriticalSpace.extension(num_pairs, scale, critical_pair, **choices)
    else:
        space = SearchSpace.first_stage(num_pairs, scale, **choices)
    starts = [METHODS[name].from_scale(scale).factors(geometry) for name in config.starts]
    seeds = _with_temperatures(
        starts, choices["attention_factors"], [longrope_attention_factor_of(scale, geometry)]
    )
    return SearchProblem(
        search_name(length, config), length, space, seeds, tuple(baseline_methods(geometry, length))
    )


def second_search(
    config: SearchConfig, geometry: RopeGeometry, length: int, tuned: RopeFactors
) -> SearchProblem:
    """Returns the search of a fine-tuned model for a further length, with λ_i ≥ λ_ft,i.

    It starts from λ_ft times the scaling methods in `starts`. Raises InputError for settings that
    have no meaning in a second search, and for factors of another model.
    """
    _refuse_mistakes(config, "second", length)
    for name in ("base", "head_dim", "original_length"):
        ours, theirs = getattr(geometry, name), getattr(tuned, name)
        if ours != theirs:
            raise InputError(f"fine-tuned factors: {name}", theirs, f"the model's is {ours}")
    scale = length / geometry.original_length
    choices = _choices(config, scale, geometry, tuned, above=True)
    space = SearchSpace.second_stage(tuned.rescale, scale, **choices)
    starts = [second_interpolation(name, tuned, length) for name in config.starts]
    sharper = [times * tuned.attention_factor for times in config.sharper_starts]
    seeds = _with_temperatures(starts, choices["attention_factors"], sharper)
    baselines = [
        ComparedMethod.fixed("fine-tuned", FactorSet.single(tuned)),
        *(
            ComparedMethod.fixed(
                f"fine-tuned · {name}", FactorSet.single(second_interpolation(name, tuned, length))
            )
            for name in default_second_interpolations()
        ),
    ]
    return SearchProblem(search_name(length, config), length, space, seeds, tuple(baselines))


def recovery_search(
    config: SearchConfig,
    geometry: RopeGeometry,
    length: int,
    tuned: RopeFactors,
    upper: float | None,
) -> SearchProblem:
    """Returns the search of an extended model for short inputs, with λ from 1.0 to `upper`.

    It starts from the tuned factors, from none, and from halfway between them. Raises InputError
    for settings that have no meaning in a recovery.

    Args:
        config: The settings of the search.
        geometry: The model's base, head_dim and window.
        length: Tokens of the longest input that the factors serve.
        tuned: The factors that the model was fine-tuned under.
        upper: The highest λ; None: as high as in the tuned factors.
    """
    _refuse_mistakes(config, "recovery", length)
    scale = max(1.0, length / geometry.original_length)
    choices = _choices(config, scale, geometry, tuned)
    space = SearchSpace.recovery(tuned.rescale, upper, **choices)
    # halfway on a log scale: √λ lies between no scaling, λ = 1, and the tuned λ
    halfway = tuned.model_copy(update={"rescale": tuple(value**0.5 for value in tuned.rescale)})
    starts = [tuned, halfway, NoScaling().factors(geometry)]
    seeds = _with_temperatures(starts, choices["attention_factors"], [tuned.attention_factor])
    baselines = (
        ComparedMethod.fixed("none", FactorSet.single(NoScaling().factors(geometry))),
        ComparedMethod.fixed("fine-tuned", FactorSet.single(tuned)),
    )
    return SearchProblem(search_name(length, config, "recover"), length, space, seeds, baselines)


def longrope_attention_factor_of(scale: float, geometry: RopeGeometry) -> float:
    """Returns √(1 + ln s / ln L), the fixed attention factor of Microsoft and Hugging Face."""
    return longrope_attention_factor(scale, geometry.original_length)


def second_interpolation(method: str, tuned: RopeFactors, length: int) -> RopeFactors:
    """Returns a scaling method on top of fine-tuned factors, for inputs of `length` tokens.

    λ is λ_ft times the method's own λ for the scale length / fine-tuned length, and t is t_ft times
    its attention factor. YaRN's ramp stays at the pretrained window: at the fine-tuned length it
    would interpolate almost nothing (on the demonstration model perplexity 90 against 32).
    """
    inner = RopeGeometry(
        base=tuned.base, head_dim=tuned.head_dim, original_length=tuned.original_length
    )
    scale = length / tuned.target_length
    factors = METHODS[method].from_scale(scale).factors(inner)
    return RopeFactors(
        rescale=tuple(a * b for a, b in zip(tuned.rescale, factors.rescale, strict=True)),
        start_tokens=tuned.start_tokens,
        attention_factor=tuned.attention_factor * factors.attention_factor,
        original_length=tuned.original_length,
        target_length=length,
        base=tuned.base,
        head_dim=tuned.head_dim,
        origin=FactorOrigin(method=method, source="on top of the fine-tuned factors"),
    )


def _choices(
    config: SearchConfig,
    scale: float,
    geometry: RopeGeometry,
    tuned: RopeFactors | None,
    above: bool = False,
) -> Choices:
    """Returns the attention factors and the n̂ that candidates may have.

    With `above`, attention factors start at the fine-tuned one (in steps of 0.01 from there), since
    attention over more tokens must be sharper still.
    """
    inherited = (
        tuned.attention_factor
        if tuned is not None
        else longrope_attention_factor_of(scale, geometry)
    )
    temperatures: dict[str, tuple[float, ...]] = {
        "searched": grid(inherited, _SHARPEST * inherited, 0.01)
        if above
        else _grid_from_one(scale, geometry),
        "inherited": (inherited,),
        "fixed": (longrope_attention_factor_of(scale, geometry),),
        "one": (1.0,),
    }
    return {
        "attention_factors": temperatures[config.attention_factor],
        "start_tokens": PAPER_START_TOKENS if config.search_start_tokens else (0,),
    }


def _grid_from_one(scale: float, geometry: RopeGeometry) -> tuple[float, ...]:
    of_yarn = Yarn(scale=scale).factors(geometry).attention_factor
    return grid(1.0, max(SEARCHED_ATTENTION_FACTORS[-1], _ABOVE_YARN * of_yarn), 0.01)


def _refuse_mistakes(config: SearchConfig, stage: SearchStage, length: int) -> None:
    mistake = config.mistake(stage, length)
    if mistake is not None:
        raise InputError(*mistake)


def _with_temperatures(
    starts: Sequence[RopeFactors], allowed: tuple[float, ...], others: Sequence[float]
) -> tuple[Candidate, ...]:
    """Returns each start with its own attention factor and once more with each of `others`.

    Where only one attention factor is allowed, each start is there once.
    """
    own = [
        Candidate(factors.rescale, factors.start_tokens, factors.attention_factor)
        for factors in starts
    ]
    if len(allowed) == 1:
        return tuple(own)
    return (*own, *(replace(each, attention_factor=other) for other in others for each in own))
