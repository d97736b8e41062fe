"""The three searches of the method: a first length, a further length, and short inputs.

Each has a space of candidates, seeds to start from, and baselines to be compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_longrope.artifacts.geometry import STANDSTILL
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import ComparedMethod, baseline_methods
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.rope import (
    METHODS,
    FactorOrigin,
    FactorSet,
    OwnScaling,
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
    OpenSpace,
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

_STANDING = 100.0
"""The λ over the scale from which a fine-tuned pair stands still: its space is an open one.

Even steps from 1 to a λ of 10⁶ would be 10⁸ grid points."""

_ROUNDING = 1e-9
"""Relative excess of a λ that counts as rounding."""


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

    In an open space λ goes on to where pairs stand still. The search starts from the scaling
    methods in `starts`. Raises InputError for settings that have no meaning in a first search, and
    for a start with λ above the space.
    """
    _refuse_mistakes(config, "first", length)
    scale = length / geometry.original_length
    starts = [METHODS[name].from_scale(scale).factors(geometry) for name in config.starts]
    fixed = longrope_attention_factor_of(scale, geometry)
    seeds = _candidates(starts)
    choices = _choices(config, seeds, _grid_from_one(scale, geometry), fixed, fixed)
    num_pairs = geometry.head_dim // 2
    if config.space == "longrope2":
        critical_pair = config.critical_pair or theoretical_critical_pair(
            geometry.head_dim, geometry.base, geometry.original_length
        )
        space: SearchSpace = CriticalSpace.extension(num_pairs, scale, critical_pair, **choices)
    elif config.space == "open":
        space = OpenSpace.extension(num_pairs, scale, **choices)
    else:
        space = SearchSpace.first_stage(num_pairs, scale, **choices)
    _refuse_starts_above(space, config.starts, starts)
    seeds = _with_temperatures(seeds, choices["attention_factors"], [fixed])
    return SearchProblem(
        search_name(length, config), length, space, seeds, tuple(baseline_methods(geometry, length))
    )


def extension_search(config: SearchConfig, own: OwnScaling, length: int) -> SearchProblem:
    """Returns the search of a model as it arrives, for `length` tokens beyond its window.

    A model that arrives unscaled gets a first search. One with scaling of its own is a fine-tuned
    model: the search starts from its factors as they are too, and is compared with them. Raises
    InputError for settings that have no meaning there.
    """
    if own.tuned is None:
        return first_search(config, own.geometry, length)
    problem = _search_beyond(config, own.geometry, length, own.tuned, (own.tuned,))
    return replace(problem, baselines=tuple(methods_compared(own, length)))


def methods_compared(
    own: OwnScaling, length: int, attention_factor: float | None = None
) -> list[ComparedMethod]:
    """Returns the methods that an extension of a model to `length` tokens is compared with.

    They are `baseline_methods` where the model arrives unscaled; else its own factors as they are,
    and the default second interpolations on top of them. With a searched `attention_factor` each
    method comes a second time, under that.
    """
    if own.tuned is None:
        return baseline_methods(own.geometry, length, attention_factor=attention_factor)
    methods = [
        ComparedMethod.fixed(own.label, own.factor_set),
        *(
            ComparedMethod.fixed(
                f"second-{name}", FactorSet.single(second_interpolation(name, own.tuned, length))
            )
            for name in default_second_interpolations()
        ),
    ]
    if attention_factor is None:
        return methods
    return methods + [method.with_searched(attention_factor) for method in methods]


def published_yarn(own: OwnScaling, length: int) -> RopeFactors:
    """Returns YaRN as published for an extension to `length` tokens of a model as it arrives."""
    if own.tuned is not None:
        return second_interpolation("yarn", own.tuned, length)
    return Yarn(scale=length / own.geometry.original_length).factors(own.geometry)


def second_search(
    config: SearchConfig, geometry: RopeGeometry, length: int, tuned: RopeFactors
) -> SearchProblem:
    """Returns the search of a fine-tuned model for a further length, with λ_i ≥ λ_ft,i.

    It starts from λ_ft times the scaling methods in `starts`. Raises InputError for settings that
    have no meaning in a second search, and for factors of another model.
    """
    return _search_beyond(config, geometry, length, tuned, ())


def _search_beyond(
    config: SearchConfig,
    geometry: RopeGeometry,
    length: int,
    tuned: RopeFactors,
    as_they_are: tuple[RopeFactors, ...],
) -> SearchProblem:
    """Returns the search beyond the factors `tuned`, compared with methods on top of them.

    `as_they_are` are further starts, which no method is put on and which are scored once, under
    their own attention factor.
    """
    _refuse_mistakes(config, "second", length)
    for name in ("base", "head_dim", "original_length"):
        ours, theirs = getattr(geometry, name), getattr(tuned, name)
        if ours != theirs:
            raise InputError(f"fine-tuned factors: {name}", theirs, f"the model's is {ours}")
    scale = length / geometry.original_length
    inherited = tuned.attention_factor
    starts = [second_interpolation(name, tuned, length) for name in config.starts]
    sharper = [times * inherited for times in config.sharper_starts]
    as_it_is, seeds = _candidates(as_they_are), _candidates(starts)
    # attention over more tokens must be sharper still: from λ_ft's own t on in steps of 0.01
    above = _reaching(grid(inherited, _SHARPEST * inherited, 0.01), sharper)
    choices = _choices(
        config,
        (*as_it_is, *seeds),
        above,
        inherited,
        longrope_attention_factor_of(scale, geometry),
    )
    reach = max(value for seed in seeds for value in seed.rescale)
    if config.space == "open" or reach > _STANDING * scale:
        upper = max(STANDSTILL, reach)
        space: SearchSpace = OpenSpace.between(tuned.rescale, upper, scale, **choices)
    else:
        space = SearchSpace.second_stage(tuned.rescale, scale, reach, **choices)
    seeds = (*as_it_is, *_with_temperatures(seeds, choices["attention_factors"], sharper))
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
    own: OwnScaling,
    length: int,
    tuned: RopeFactors,
    upper: float | None,
    attention_factor: float | None = None,
) -> SearchProblem:
    """Returns the search of an extended model for short inputs, with λ from 1.0 to `upper`.

    It starts from the tuned factors, from those the model arrived with (mostly no scaling), and
    from halfway between them. An attention factor that is not searched is that of the longest
    inputs (`inherited`), since Hugging Face's format has one for inputs of all lengths, or Hugging
    Face's own for the tuned length (`fixed`). Raises InputError for settings that have no meaning
    in a recovery.

    Args:
        config: The settings of the search.
        own: The scaling that the model arrived with.
        length: Tokens of the longest input that the factors serve.
        tuned: The factors that the model was fine-tuned under.
        upper: The highest λ; None: as high as in the tuned factors and in those it arrived with.
        attention_factor: The attention factor of the longest inputs; None: that of `tuned`.
    """
    inherited = tuned.attention_factor if attention_factor is None else attention_factor
    _refuse_mistakes(config, "recovery", length)
    geometry, before = own.geometry, own.for_length(length)
    # halfway on a log scale: √(λ_tuned · λ_before), which is √λ_tuned where there was no scaling
    pairs = zip(tuned.rescale, before.rescale, strict=True)
    halfway = tuned.model_copy(update={"rescale": tuple((a * b) ** 0.5 for a, b in pairs)})
    seeds = _candidates([tuned, halfway, before])
    from_one = _grid_from_one(max(1.0, length / geometry.original_length), geometry)
    given = {inherited, tuned.attention_factor, before.attention_factor}
    choices = _choices(
        config,
        seeds,
        tuple(sorted({*from_one, *given})),
        inherited,
        longrope_attention_factor_of(tuned.scale, geometry),
    )
    every_rescale = (*tuned.rescale, *before.rescale)
    highest = max(every_rescale) if upper is None else upper
    lowest = min(1.0, *every_rescale)
    if highest > _STANDING * tuned.scale:
        lower = (lowest,) * len(tuned.rescale)
        space: SearchSpace = OpenSpace.between(lower, highest, tuned.scale, **choices)
    else:
        space = SearchSpace.recovery(tuned.rescale, highest, lowest, **choices)
    others = dict.fromkeys((tuned.attention_factor, inherited))
    seeds = _with_temperatures(seeds, choices["attention_factors"], list(others))
    baselines = (
        ComparedMethod.fixed(own.label, own.factor_set),
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
    seeds: Sequence[Candidate],
    searched: tuple[float, ...],
    inherited: float,
    fixed: float,
) -> Choices:
    """Returns the attention factors and the n̂ that candidates may have, those of the seeds too.

    Args:
        config: The settings of the search, which say what is searched and what stays.
        seeds: The candidates that the search starts from, each with its own attention factor.
        searched: The attention factors of `searched`, to be widened as far as those of the seeds.
        inherited: The attention factor of `inherited`.
        fixed: The attention factor of `fixed`.
    """
    temperatures: dict[str, tuple[float, ...]] = {
        "searched": _reaching(searched, [seed.attention_factor for seed in seeds]),
        "inherited": (inherited,),
        "fixed": (fixed,),
        "one": (1.0,),
    }
    chosen = config.attention_factor
    paper = PAPER_START_TOKENS if config.search_start_tokens else ()
    # where λ = 1 for every pair, n̂ says nothing
    given = {seed.start_tokens for seed in seeds if any(value != 1.0 for value in seed.rescale)}
    return {
        "attention_factors": temperatures[chosen] if isinstance(chosen, str) else (chosen,),
        "start_tokens": tuple(sorted({*paper, *given})) or (0,),
    }


def _reaching(choices: tuple[float, ...], given: Iterable[float]) -> tuple[float, ...]:
    """Returns the choices with those of `given` that lie outside them, exactly as they are."""
    outside = {value for value in given if not choices[0] <= value <= choices[-1]}
    return tuple(sorted({*choices, *outside}))


def _grid_from_one(scale: float, geometry: RopeGeometry) -> tuple[float, ...]:
    of_yarn = Yarn(scale=scale).factors(geometry).attention_factor
    return grid(1.0, max(SEARCHED_ATTENTION_FACTORS[-1], _ABOVE_YARN * of_yarn), 0.01)


def _refuse_mistakes(config: SearchConfig, stage: SearchStage, length: int) -> None:
    mistake = config.mistake(stage, length)
    if mistake is not None:
        raise InputError(*mistake)


def _refuse_starts_above(
    space: SearchSpace, names: Sequence[str], starts: Sequence[RopeFactors]
) -> None:
    """Raises InputError for a start whose largest λ is above the space's."""
    highest = float(space.bounds[1][-1])
    for name, factors in zip(names, starts, strict=True):
        if max(factors.rescale) > highest * (1 + _ROUNDING):
            rule = f"has λ up to {max(factors.rescale):g}, above the space's {highest:g}"
            raise InputError("search.starts", name, rule)


def _candidates(starts: Sequence[RopeFactors]) -> tuple[Candidate, ...]:
    """Returns λ, n̂ and the attention factor of each start."""
    return tuple(
        Candidate(factors.rescale, factors.start_tokens, factors.attention_factor)
        for factors in starts
    )


def _with_temperatures(
    seeds: tuple[Candidate, ...], allowed: tuple[float, ...], others: Sequence[float]
) -> tuple[Candidate, ...]:
    """Returns each seed with its own attention factor and once more with each of `others`.

    Where only one attention factor is allowed, each seed is there once.
    """
    if len(allowed) == 1:
        return seeds
    return (*seeds, *(replace(each, attention_factor=other) for other in others for each in seeds))
